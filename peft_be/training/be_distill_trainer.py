from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from ..losses import OutputHead, cross_entropy, divergence
from ..prompting import PromptRenderer
from ..prompting.reconstruction import reconstruction_example
from ..teacher import AnswerCache, AnswerSettings, answer_states, generate_answers, model_fingerprint, share_prefix
from ..tuner import BETokenConfig
from .be_distill_config import BEDistillConfig
from .init import initial_rows, residual_growth
from .row_trainer import RowCollator, RowTrainer, final_hidden_states, predicting


logger = logging.getLogger(__name__)


class BEDistillTrainer(RowTrainer):
    """
    Trainer of a prompt's [BE] rows, stages 1 and 2 of the paper (sections 2.2 and 2.3, Eq. 2-4, Algorithm 1).

    Teacher and student are the same frozen model: the teacher reads the full prompt P, the student [BE] in its place. The
    teacher works once, before the first step: P's key-value cache is shared by all queries, and the final hidden states
    of its answers are kept on disk, so that each step costs the student's forward and backward alone.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The causal LM. If it is not wrapped yet, an adapter with one [BE] row is put on it.
        args ([`BEDistillConfig`], *optional*):
            Configuration. If `None`, a default one is used.
        prompt (`str` or `list[dict]`):
            P: a system text, or the chat messages in front of the user's turn.
        train_dataset ([`~datasets.Dataset`], *optional*):
            Queries, in a column `query` (a string, or chat messages that end with the user's turn), and, in an optional
            column `answer`, gold answers to distil on instead of the teacher's own. Not needed if `kd_weight=0`.
        eval_dataset ([`~datasets.Dataset`], *optional*):
            Held-out queries, with the same columns. Their KL chooses the checkpoint. Not needed if `kd_weight=0`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer.
        callbacks (`list[~transformers.TrainerCallback]`, *optional*):
            Callbacks in addition to the default ones.
        on_teacher_progress (`Callable[[str, int, int], None]`, *optional*):
            Called with `"train"` or `"validation"`, the number of its queries that the teacher has answered, and of all.

    Raises:
        `ValueError`: an empty prompt, no queries though `kd_weight > 0`, a prompt that leaves no room in the context for
            query and answer, or no [AE] row though `kd_weight < 1`.

    Example:

        ```python
        >>> from peft_be import BEDistillConfig, BEDistillTrainer

        >>> trainer = BEDistillTrainer(
        ...     model,
        ...     BEDistillConfig("pirate", kd_weight=1.0),
        ...     prompt="You are Jack Sparrow, ...",
        ...     train_dataset=Dataset.from_dict({"query": train_queries}),
        ...     eval_dataset=Dataset.from_dict({"query": held_out_queries}),
        ...     processing_class=tokenizer,
        ... )
        >>> trainer.train()
        >>> trainer.save_model()
        ```
    """

    _tag_names = ["trl", "peft_be", "behavior-equivalent-token"]
    _name = "BE distillation"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: BEDistillConfig | None = None,
        prompt: str | list[dict[str, str]] | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        on_teacher_progress: Callable[[str, int, int], None] | None = None,
    ):
        args = args or BEDistillConfig("be")
        if prompt is None:
            raise ValueError("BEDistillTrainer needs the prompt that [BE] is to replace: pass `prompt`.")
        if not isinstance(model, PeftModel):
            vocab_size = model.get_input_embeddings().num_embeddings
            config = BETokenConfig.for_tokenizer(processing_class, vocab_size, use_ae_token=args.kd_weight < 1)
            model = get_peft_model(model, config)
        self._adapter = model.active_adapter
        config = model.peft_config[self._adapter]
        if args.kd_weight < 1 and config.ae_token_id is None:
            raise ValueError(
                "Reconstruction (kd_weight below 1) needs a trained [AE] row: create the adapter with use_ae_token=True "
                "and set the row, or train with kd_weight=1."
            )
        self._tokenizer = processing_class
        self._on_teacher_progress = on_teacher_progress
        self.renderer = PromptRenderer.for_adapter(config, processing_class, prompt)
        base = model.get_base_model()
        base.to(args.device)
        self._head = OutputHead(base)
        self._pad = processing_class.pad_token_id or 0
        if args.init is not None:
            table = base.get_input_embeddings().get_base_layer().weight
            rows = initial_rows(
                args.init,
                config.num_be_tokens,
                table,
                processing_class,
                self.renderer.prompt_ids,
                args.init_text,
                args.seed,
            )
            scale = args.init_scale or residual_growth(base, self.renderer.full("Hello")[:128])
            model.base_model.set_rows(self._adapter, scale * rows)
        self._start_rms = model.base_model.get_rows(self._adapter).square().mean().sqrt().item()
        self._reconstruction = None
        if args.kd_weight < 1:
            row = reconstruction_example(
                processing_class, config.be_token_ids, config.ae_token_id, self.renderer.prompt_ids
            )
            self._check_length(len(row[0]), base, "its reconstruction")
            self._reconstruction = RowCollator(self._pad)([dict(zip(("input_ids", "labels"), row))])
            self._reconstruction = {name: tensor.to(args.device) for name, tensor in self._reconstruction.items()}
        self._teacher_hidden = {}
        if args.kd_weight == 0:
            # The one training example of stage 1 is in compute_loss: the rows here only count the steps
            rows = {"input_ids": [[self._pad]], "labels": [[-100]], "length": [1]}
            train_dataset = eval_dataset = Dataset.from_dict(rows)
        else:
            train_dataset = self._teach(base, train_dataset, args, "train")
            eval_dataset = self._teach(base, eval_dataset, args, "validation")
        super().__init__(
            model=model,
            args=args,
            data_collator=self._collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )

    # What the teacher does, once

    def _teach(self, base: PreTrainedModel, dataset: Dataset | None, args: BEDistillConfig, name: str) -> Dataset:
        """Rows `[BE] q answer`, each with the teacher's hidden states for the answer."""
        if dataset is None or len(dataset) == 0:
            raise ValueError(f"Distillation (kd_weight above 0) needs {name} queries, and there are none.")
        queries = list(dataset["query"])
        prompts = [self.renderer.full(query) for query in queries]
        self._check_length(max(map(len, prompts)) + args.max_answer_length, base, "the longest query and its answer")
        settings = AnswerSettings(
            max_new_tokens=args.max_answer_length,
            num_answers=args.num_answers,
            temperature=args.answer_temperature,
            top_p=args.answer_top_p,
            batch_size=args.answer_batch_size,
            seed=args.seed,
        )
        gold = None
        if "answer" in dataset.column_names:
            eos = base.generation_config.eos_token_id
            eos = [] if eos is None else [eos[0] if isinstance(eos, list) else eos]
            texts = list(dataset["answer"])
            encoded = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            gold = [(ids + eos)[: args.max_answer_length] for ids in encoded]
        key = {
            "model": model_fingerprint(base),
            "prompts": prompts,
            "gold": gold,
            "settings": vars(settings) if gold is None else {"batch_size": settings.batch_size},
        }
        cache = AnswerCache(args.answer_cache_dir or Path(args.output_dir) / "teacher", key)
        training, start = base.training, time.perf_counter()
        base.eval()
        prefix = share_prefix(base, prompts)
        on_progress = self._on_teacher_progress and partial(self._on_teacher_progress, name)
        common = {"prefix": prefix, "cache": cache, "on_progress": on_progress}
        if gold is None:
            answers = generate_answers(base, prompts, settings, self._pad, **common)
        else:
            answers = answer_states(base, prompts, gold, settings.batch_size, self._pad, **common)
        base.train(training)
        logger.info(f"Teacher: {len(answers)} {name} answers in {time.perf_counter() - start:.0f} s.")

        rows, hidden = [], []
        for answer in answers:
            ids = answer.ids[: args.max_kd_tokens]
            student = self.renderer.be(queries[answer.query])
            # The last answer token predicts nothing, but is kept: rows stay what the model will see
            rows.append(
                {"input_ids": student + ids, "labels": [-100] * len(student) + ids, "length": len(student + ids)}
            )
            hidden.append(answer.hidden[: len(ids)])
        self._teacher_hidden[name] = hidden
        return Dataset.from_list([{**row, "teacher": [name, str(i)]} for i, row in enumerate(rows)])

    @staticmethod
    def _check_length(length: int, base: PreTrainedModel, what: str) -> None:
        context = getattr(base.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and length > context:
            raise ValueError(
                f"The prompt does not fit: with {what} it is {length} tokens long, and the model's context is {context}. "
                "Shorten the prompt, the queries or the answers."
            )

    def _collate(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        if "teacher" in rows[0]:
            rows = [
                {**row, "teacher_hidden": self._teacher_hidden[row["teacher"][0]][int(row["teacher"][1])]}
                for row in rows
            ]
        return RowCollator(self._pad)(rows)

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        # Under Adam this is the same as training rows of RMS 1: one learning rate for every backbone and `init_scale`
        for group in optimizer.param_groups:
            group["lr"] *= self._start_rms
        return optimizer

    def _prepare_dataset(self, dataset, *_):
        return dataset  # the rows are ready, and may be longer than SFT's `max_length`

    # Eq. 2-4

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        args = self.args
        loss = 0.0
        if args.kd_weight > 0:
            kd = self._kd_loss(model, inputs, args.temperature, args.beta).mean()
            if args.scale_by_temperature_squared:
                kd = kd * args.temperature**2
            loss = loss + args.kd_weight * self._checked("kd_loss", kd)
        # Alone, reconstruction is what every step is for
        interval = args.reconstruction_interval if args.kd_weight > 0 else 1
        if args.kd_weight < 1 and self.state.global_step % interval == 0:
            reconstruction = self._checked("reconstruction_loss", self._reconstruction_loss(model))
            loss = loss + (1 - args.kd_weight) * interval * reconstruction
        return (loss, {}) if return_outputs else loss

    def _checked(self, name: str, loss: torch.Tensor) -> torch.Tensor:
        """Log a part of the loss, and stop before a broken one reaches the rows."""
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"The {name.replace('_', ' ')} is {value} at step {self.state.global_step}: lower the learning rate, or "
                "use a wider dtype for the base model."
            )
        self._metrics["train"][name].append(value)
        return loss

    def _kd_loss(self, model, inputs, temperature: float, beta: float) -> torch.Tensor:
        """The summands of Eq. 3, `[N]`, for the N answer tokens of a batch."""
        student, _ = predicting(final_hidden_states(model, inputs["input_ids"]), inputs["labels"])
        return divergence(student, inputs["teacher_hidden"], self._head, temperature, beta)

    def _reconstruction_loss(self, model) -> torch.Tensor:
        """
        Eq. 2, as a mean over P's tokens. The paper writes a sum; the mean keeps its weight beside Eq. 3, which is a mean,
        independent of P's length, and is what the authors' scripts compute.
        """
        inputs = self._reconstruction
        hidden, labels = predicting(final_hidden_states(model, inputs["input_ids"]), inputs["labels"])
        return cross_entropy(hidden, labels, self._head).mean()

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """KL at temperature 1, mean over the held-out answers' tokens; without queries, the reconstruction loss."""
        model = self._wrap_model(self.model, training=False)
        was_training = model.training
        model.eval()
        start, metrics = time.perf_counter(), {}
        if self.args.kd_weight > 0:
            total = count = 0
            for inputs in self.get_eval_dataloader(eval_dataset):
                kl = self._kd_loss(model, self._prepare_inputs(inputs), temperature=1.0, beta=0.0)
                sums = torch.stack(
                    [kl.double().sum(), torch.tensor(float(len(kl)), dtype=torch.double, device=kl.device)]
                )
                sums = self.accelerator.reduce(sums, reduction="sum")
                total, count = total + sums[0].item(), count + sums[1].item()
            metrics[f"{metric_key_prefix}_kl"] = total / count
        else:
            metrics[f"{metric_key_prefix}_reconstruction_loss"] = self._reconstruction_loss(model).item()
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - start
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        model.train(was_training)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # The rows' norm: one that runs away leaves the range of what the model has seen
        rows = self.accelerator.unwrap_model(self.model).base_model.get_rows(self._adapter)
        logs["be_norm"] = rows.norm(dim=-1).mean().item()
        super().log(logs, start_time)

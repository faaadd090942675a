from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from ..adapters.create import add_adapter, check_base_model, find_ae_row
from ..adapters.provenance import origin, stage_name
from ..data import query_dataset
from ..figures import gap_closed
from ..losses import OutputHead, cross_entropy, divergence
from ..prompting import PromptRenderer, is_prompt_of, prompt_fingerprint
from ..prompting.context import check_length
from ..prompting.reconstruction import reconstruction_example
from ..teacher import (
    Answer,
    AnswerSettings,
    SharedPrefix,
    answer_divergences,
    cached_answers,
    generate_answers,
    share_prefix,
    teacher_prompts,
)
from .be_distill_config import BEDistillConfig
from .ggt import GGT
from .init import initial_rows, residual_growth
from .learning_rows import check_learning_rows
from .prompt_batches import PromptBatchSampler
from .row_trainer import RowCollator, RowTrainer, final_hidden_states, has_flash_attention, predicting


logger = logging.getLogger(__name__)

# What the length of hidden states is measured on. It belongs to the backbone: prompts change it by a few per cent
CALIBRATION_QUERY = "What would you like to talk about today, and why?"
# Answers shown before the training
PREVIEWS = 3
# A prompt whose absence changes less is hardly there: its own examples or paragraphs in another order changed 0.003 to
# 0.017 nats a token (`reordered`), and its absence 0.08 and more, for every prompt that was measured (research/log.md)
LITTLE_KL = 0.02


class BEDistillTrainer(RowTrainer):
    """
    Trainer of a prompt's [BE] rows, stages 1 and 2 of the paper (sections 2.2 and 2.3, Eq. 2-4, Algorithm 1).

    Teacher and student are the same frozen model: the teacher reads the full prompt P, the student [BE] in its place. The
    teacher works once, before the first step: P's key-value cache is shared by all queries, and the final hidden states
    of its answers are kept on disk, so that each step costs the student's forward and backward alone.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The causal LM. If it is not wrapped yet, an adapter with one [BE] row is put on it, and, where `kd_weight` is
            below 1, with the [AE] row that the package ships for this backbone.
        args ([`BEDistillConfig`], *optional*):
            Configuration. If `None`, a default one is used.
        prompt (`str`, `list[dict]` or `dict[str, str | list[dict]]`):
            P: a system text, or the chat messages in front of the user's turn. Or several prompts by name, which are
            trained together: the adapter's [BE] rows are dealt out to them in this order, the same number to each, every
            step takes a batch of each prompt's queries, and each prompt's rows become what they would have become
            alone (see [`compress_prompts`], which also chooses each prompt's checkpoint).
        train_dataset ([`~datasets.Dataset`] or `Iterable`, *optional*):
            Queries, in a column `query` or in any other form that [`as_queries`] takes, and, in an optional column
            `answer`, given answers to distil on instead of the teacher's own: texts, token ids, or `None` where the
            teacher is to answer. With several prompts, a column `prompt_name` says whose query it is. Not needed if
            `kd_weight=0`.
        eval_dataset ([`~datasets.Dataset`] or `Iterable`, *optional*):
            Held-out queries, with the same columns. Their KL chooses the checkpoint. Not needed if `kd_weight=0`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer.
        callbacks (`list[~transformers.TrainerCallback]`, *optional*):
            Callbacks in addition to the default ones.
        on_teacher_progress (`Callable[[str, int, int], None]`, *optional*):
            Called with `"train"` or `"validation"`, the number of its queries that the teacher has answered, and of all.

    Attributes:
        renderers (`dict[str, PromptRenderer]`): for each prompt, how its queries are written; a single prompt's name is
            `"default"`.
        failed (`dict[str, str]`): of several prompts, those that were given up since their loss was not finite, and why.
        no_prompt_kl (`dict[str, float]`): for each prompt, the KL without a prompt on its validation queries; empty
            without queries.
        stopped (`set[str]`): of several prompts, those that take no further part in the training.

    Raises:
        `ValueError`: an empty prompt, no queries though `kd_weight > 0`, a prompt that leaves no room in the context for
            query and answer, no [AE] row though `kd_weight < 1`, a number of [BE] rows that several prompts cannot
            share, or rows that could not learn, or not alone: a frozen, disabled or merged adapter, or an adapter of
            another method.

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
    _learns = "[BE]"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: BEDistillConfig | None = None,
        prompt: str | list[dict[str, str]] | None = None,
        train_dataset: Dataset | Iterable | None = None,
        eval_dataset: Dataset | Iterable | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        on_teacher_progress: Callable[[str, int, int], None] | None = None,
    ):
        args = args or BEDistillConfig("be")
        if prompt is None:
            raise ValueError("BEDistillTrainer needs the prompt that [BE] is to replace: pass `prompt`.")
        if args.kd_weight > 0:
            datasets = train_dataset, eval_dataset
            train_dataset, eval_dataset = (None if given is None else query_dataset(given) for given in datasets)
        if not isinstance(model, PeftModel):
            check_base_model(model)
            reconstructs = args.kd_weight < 1 and args.use_ae_token
            ae_row = find_ae_row(None, model, processing_class, model.name_or_path, reconstructs)
            model = add_adapter(model, processing_class, ae_row=ae_row)
        self._adapter = check_learning_rows(model, self._learns)
        config = model.peft_config[self._adapter]
        ae_token_id = config.ae_token_id if args.use_ae_token else None
        if args.kd_weight < 1 and args.use_ae_token and ae_token_id is None:
            raise ValueError(
                "Reconstruction (kd_weight below 1) needs a trained [AE] row: create the adapter with use_ae_token=True "
                "and set the row, or train with kd_weight=1."
            )
        self._tokenizer = processing_class
        self._on_teacher_progress = on_teacher_progress
        self._named = isinstance(prompt, dict)
        self._prompts = prompts = prompt if self._named else {"default": prompt}
        if not prompts or config.num_be_tokens % len(prompts):
            raise ValueError(
                f"{len(prompts)} prompts cannot share {config.num_be_tokens} [BE] rows: each needs the same number of them."
            )
        self._rows_per_prompt = config.num_be_tokens // len(prompts)
        self.renderers = {}
        for i, (name, text) in enumerate(prompts.items()):
            ids = config.be_token_ids[i * self._rows_per_prompt : (i + 1) * self._rows_per_prompt]
            # The rows may come from another prompt, and are about to stand for this one
            own = replace(config, num_be_tokens=len(ids), be_token_ids=ids, provenance=None)
            self.renderers[name] = PromptRenderer.for_adapter(own, processing_class, text)
        self.failed: dict[str, str] = {}
        # Prompts that take no further part in the training: callbacks may add to it
        self.stopped: set[str] = set()
        base = model.get_base_model()
        base.to(args.device)
        self._head = OutputHead(base)
        self._origin = origin(base, processing_class)
        earlier = config.provenance or {}
        goes_on = args.init is None and not self._named and is_prompt_of(config, prompt)
        self._earlier_stages = earlier["stages"] if goes_on else []
        self._pad = processing_class.pad_token_id or 0
        self._collator = RowCollator(self._pad, has_flash_attention(base))
        if args.init is not None:
            model.base_model.set_rows(self._adapter, self._start_rows(base, args))
            config.provenance = None  # that of other rows
        self._start_rms = model.base_model.get_rows(self._adapter).square().mean().sqrt().item()
        if not 0 < self._start_rms < math.inf:
            raise FloatingPointError(
                f"The start rows have a root mean square of {self._start_rms}, and nothing can learn from there: the "
                "model's embeddings are damaged, or init=None goes on from rows that were never set."
            )
        self._reconstruction = {}
        if args.kd_weight < 1:
            for name, renderer in self.renderers.items():
                row = reconstruction_example(processing_class, renderer.be_token_ids, ae_token_id, renderer.prompt_ids)
                check_length(base, len(row[0]), "its reconstruction")
                batch = self._collator([dict(zip(("input_ids", "labels"), row))])
                self._reconstruction[name] = {key: tensor.to(args.device) for key, tensor in batch.items()}
        self._teacher_hidden = {"train": [], "validation": []}
        self.no_prompt_kl: dict[str, float] = {}
        self._previews: list[tuple[str | list, list[int]]] = []
        if args.kd_weight == 0:
            # The one training example of stage 1 is in compute_loss: the rows here only count the steps
            rows = {"input_ids": [[self._pad]], "labels": [[-100]], "length": [1], "prompt": [0]}
            train_dataset = eval_dataset = Dataset.from_dict(rows)
        else:
            queries = train_dataset, eval_dataset
            train_dataset, eval_dataset = self._teach(base, *queries, args)
            self._num_queries = dict(zip(("train", "validation"), map(len, queries)))
        super().__init__(
            model=model,
            args=args,
            data_collator=self._collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizer_cls_and_kwargs=(GGT, {"lr": args.learning_rate}) if args.full_matrix else None,
        )

    def _start_rows(self, base: PreTrainedModel, args: BEDistillConfig) -> torch.Tensor:
        table = base.get_input_embeddings().get_base_layer().weight
        renderers = list(self.renderers.values())
        rows = [
            initial_rows(
                args.init, self._rows_per_prompt, table, self._tokenizer, r.prompt_ids, args.init_text, args.seed
            )
            for r in renderers
        ]
        scale = args.init_scale or residual_growth(base, renderers[0].no_prompt(CALIBRATION_QUERY))
        return scale * torch.cat(rows)

    # What the teacher does, once

    def _teach(
        self,
        base: PreTrainedModel,
        train_dataset: Dataset | None,
        eval_dataset: Dataset | None,
        args: BEDistillConfig,
    ) -> list[Dataset]:
        """For training and validation, rows `[BE] q answer`, each with the teacher's hidden states for the answer."""
        datasets = {"train": train_dataset, "validation": eval_dataset}
        rows: dict[str, list[dict]] = {split: [] for split in datasets}
        done = dict.fromkeys(datasets, 0)
        training = base.training
        base.eval()
        for number, (name, renderer) in enumerate(self.renderers.items()):
            own = {split: self._own_queries(dataset, name, split) for split, dataset in datasets.items()}
            prompts = {
                split: teacher_prompts(base, renderer, dataset["query"], args.max_answer_length)
                for split, dataset in own.items()
            }
            prefix = share_prefix(base, prompts["train"] + prompts["validation"])
            for split, dataset in own.items():
                start = time.perf_counter()
                report = None
                if self._on_teacher_progress:
                    report = partial(self._report_answers, split, done[split], len(datasets[split]))
                answers = self._answers(base, dataset, prompts[split], prefix, args, report)
                kept = args.max_kd_tokens
                answers = [Answer(answer.query, answer.ids[:kept], answer.hidden[:kept]) for answer in answers]
                if split == "validation":
                    self._measure_no_prompt(base, name, dataset["query"], answers, args)
                elif number == 0:
                    firsts = {answer.query: answer.ids for answer in reversed(answers) if answer.query < PREVIEWS}
                    self._previews = [(dataset["query"][query], ids) for query, ids in sorted(firsts.items())]
                for answer in answers:
                    ids = answer.ids
                    student = renderer.be(dataset["query"][answer.query])
                    # The last answer token predicts nothing, but is kept: rows stay what the model will see
                    row = {"input_ids": student + ids, "labels": [-100] * len(student) + ids}
                    index = len(rows[split])
                    rows[split].append(
                        {**row, "length": len(row["labels"]), "prompt": number, "teacher": [split, str(index)]}
                    )
                    self._teacher_hidden[split].append(answer.hidden)
                done[split] += len(dataset)
                seconds = time.perf_counter() - start
                logger.info(f"Teacher: {len(dataset)} {split} queries of prompt '{name}' in {seconds:.0f} s.")
        base.train(training)
        return [Dataset.from_list(rows[split]) for split in datasets]

    def _measure_no_prompt(
        self, base: PreTrainedModel, name: str, queries: list, answers: list[Answer], args: BEDistillConfig
    ) -> None:
        """The KL without a prompt on the validation queries: no KL of the rows says anything without it."""
        prompts = [self.renderers[name].no_prompt(queries[answer.query]) for answer in answers]
        size = args.per_device_eval_batch_size
        _, kl = answer_divergences(base, self._head, prompts, answers, size, self._pad)
        self.no_prompt_kl[name] = value = torch.cat(kl).mean().item()
        if value < LITTLE_KL:
            of = f" of '{name}'" if self._named else ""
            warnings.warn(
                f"The prompt{of} changes little: without it, the model gives the teacher's answers to the validation "
                f"queries with a KL of {value:.4f} nats a token. Another order of a prompt's parts changes as much "
                f"({LITTLE_KL} at the most, where it was measured), so there is little for [BE] to learn. The model "
                "may be too weak to follow the prompt, or the queries do not touch on what it says.",
                stacklevel=1,
            )

    def preview(self) -> list[dict]:
        """
        What [BE] is to imitate: the teacher's answers to the first training queries, of the first prompt if there are
        several, and the model's answers without a prompt. Changes no random numbers.

        Returns:
            `list[dict]`: the texts `full` and `no_prompt`, and their `query`. Empty for a training without queries.
        """
        if not self._previews:
            return []
        base = self.accelerator.unwrap_model(self.model).get_base_model()
        renderer = next(iter(self.renderers.values()))
        settings = replace(self._answer_settings(self.args), num_answers=1, temperature=0.0, top_p=1.0)
        prompts = [renderer.no_prompt(query) for query, _ in self._previews]
        training = base.training
        without = generate_answers(base.eval(), prompts, settings, self._pad)
        base.train(training)
        return [
            {
                "query": query if isinstance(query, str) else query[-1]["content"],
                "full": self._tokenizer.decode(ids, skip_special_tokens=True),
                "no_prompt": self._tokenizer.decode(answer.ids, skip_special_tokens=True),
            }
            for (query, ids), answer in zip(self._previews, without)
        ]

    def _report_answers(self, split: str, before: int, total: int, earlier: int, done: int, _: int) -> None:
        self._on_teacher_progress(split, before + earlier + done, total)

    def _own_queries(self, dataset: Dataset | None, name: str, split: str) -> Dataset:
        """The queries of one prompt."""
        if dataset is not None and self._named:
            dataset = dataset.select([i for i, owner in enumerate(dataset["prompt_name"]) if owner == name])
        if dataset is None or len(dataset) == 0:
            raise ValueError(f"Distillation (kd_weight above 0) needs {split} queries, and there are none.")
        return dataset

    def _answers(
        self,
        base: PreTrainedModel,
        dataset: Dataset,
        prompts: list[list[int]],
        prefix: SharedPrefix | None,
        args: BEDistillConfig,
        on_progress: Callable[[int, int, int], None] | None,
    ) -> list[Answer]:
        """The teacher's answers to the queries of one prompt, or the given answers with its hidden states."""
        given = list(dataset["answer"]) if "answer" in dataset.column_names else [None] * len(dataset)
        directory = args.answer_cache_dir or Path(args.output_dir) / "teacher"
        asked = [i for i, answer in enumerate(given) if answer is None]
        read = [i for i, answer in enumerate(given) if answer is not None]
        gold = [self._answer_ids(base, given[i], args) for i in read]
        answers: list[Answer] = []
        for indices, ids, earlier in ((asked, None, 0), (read, gold, len(asked))):
            if indices:
                own, settings = [prompts[i] for i in indices], self._answer_settings(args)
                report = on_progress and partial(on_progress, earlier)
                found = cached_answers(base, own, settings, self._pad, directory, ids, prefix, report)
                answers += [replace(answer, query=indices[answer.query]) for answer in found]
        return answers

    def _answer_settings(self, args: BEDistillConfig) -> AnswerSettings:
        return AnswerSettings(
            max_new_tokens=args.max_answer_length,
            num_answers=args.num_answers,
            temperature=args.answer_temperature,
            top_p=args.answer_top_p,
            batch_size=args.answer_batch_size,
            seed=args.seed,
        )

    def _answer_ids(self, base: PreTrainedModel, answer: str | list[int], args: BEDistillConfig) -> list[int]:
        """Token ids of a given answer; a text has the end-of-turn token after it."""
        if isinstance(answer, str):
            eos = base.generation_config.eos_token_id
            eos = [] if eos is None else [eos[0] if isinstance(eos, list) else eos]
            answer = self._tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"] + eos
        return answer[: args.max_answer_length]

    def provenance(self) -> dict | None:
        if self._named:
            return None
        training = {"steps": self.state.global_step}
        if self.args.kd_weight > 0:
            training |= {f"{split}_queries": number for split, number in self._num_queries.items()}
            if self.state.best_metric is not None and self.args.metric_for_best_model == "kl":
                training["validation_kl"] = self.state.best_metric
                training["validation_kl_no_prompt"] = self.no_prompt_kl["default"]
        return self.provenance_of("default", training)

    def provenance_of(self, name: str, training: dict) -> dict:
        """
        What an adapter with the rows of one of the prompts is to say of them.

        Args:
            name (`str`): the prompt.
            training (`dict`): figures for the model card: `steps`, `train_queries`, `validation_queries`,
                `validation_kl`, `validation_kl_no_prompt`.
        """
        return {
            **self._origin,
            "prompt_sha256": prompt_fingerprint(self._prompts[name]),
            "prompt_tokens": len(self.renderers[name].prompt_ids),
            "stages": list(dict.fromkeys([*self._earlier_stages, stage_name(self.args.kd_weight)])),
            "training": training,
        }

    def _collate(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        if "teacher" in rows[0]:
            rows = [
                {**row, "teacher_hidden": self._teacher_hidden[row["teacher"][0]][int(row["teacher"][1])]}
                for row in rows
            ]
        return self._collator(rows)

    def get_train_dataloader(self) -> DataLoader:
        if not self._named or self.args.kd_weight == 0:
            return super().get_train_dataloader()
        sampler = PromptBatchSampler(
            owners=self.train_dataset["prompt"],
            lengths=self.train_dataset["length"],
            batch_size=self.args.train_batch_size,
            num_batches=self.args.max_steps * self.args.gradient_accumulation_steps,
            seed=self.args.seed,
            is_learning=lambda number: list(self.renderers)[number] not in self.stopped,
        )
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def _clip_grad_norm(self, model):
        if not self._named:
            return super()._clip_grad_norm(model)
        # Each prompt's rows by themselves: a common norm would let one prompt shrink the steps of the others
        grad = self.accelerator.unwrap_model(model).base_model.rows_grad(self._adapter)
        parts = grad.split(self._rows_per_prompt)
        norms = torch.stack([part.norm() for part in parts])
        for part, norm in zip(parts, norms):
            part.mul_((self.args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        return norms.norm()

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        # The same as training rows of RMS 1: one learning rate for every backbone and `init_scale`
        for group in optimizer.param_groups:
            group["lr"] *= self._start_rms
        return optimizer

    def _prepare_dataset(self, dataset, *_):
        return dataset  # the rows are ready, and may be longer than SFT's `max_length`

    # Eq. 2-4

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        args = self.args
        names = list(self.renderers)
        losses: dict[str, torch.Tensor] = {}
        if args.kd_weight > 0:
            kd = self._answer_losses(model, inputs)
            if args.scale_by_temperature_squared:
                kd = kd * args.temperature**2
            means = {names[number]: kd[tokens].mean() for number, tokens in inputs["tokens_of"].items()}
            losses = {name: args.kd_weight * value for name, value in self._checked("kd_loss", means).items()}
        # Alone, reconstruction is what every step is for
        interval = args.reconstruction_interval if args.kd_weight > 0 else 1
        if args.kd_weight < 1 and self.state.global_step % interval == 0:
            learning = losses if args.kd_weight > 0 else [name for name in names if name not in self.failed]
            values = {name: self._reconstruction_loss(model, name) for name in learning}
            for name, value in self._checked("reconstruction_loss", values).items():
                losses[name] = losses.get(name, 0.0) + (1 - args.kd_weight) * interval * value
        # A sum, since no row takes part in two prompts' losses: each has the gradient it would have alone
        start = torch.zeros((), device=args.device, requires_grad=True)
        loss = sum((value for name, value in losses.items() if name not in self.failed), start=start)
        return (loss, {}) if return_outputs else loss

    def _checked(self, what: str, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Log a part of the loss, as a mean over the prompts, and stop before a broken one reaches the rows: several prompts
        go on without the broken one.
        """
        own = {name: loss.detach() for name, loss in losses.items() if name not in self.failed}
        # The one time that a step waits for a GPU, however many the prompts
        values = dict(zip(own, torch.stack(list(own.values())).tolist())) if own else {}
        for name, value in values.items():
            if not math.isfinite(value):
                self.stopped.add(name)
                self.failed[name] = (
                    f"The {what.replace('_', ' ')} is {value} at step {self.state.global_step}: lower the learning rate, or "
                    "use a wider dtype for the base model."
                )
        if len(self.failed) == len(self.renderers):
            raise FloatingPointError(next(reversed(self.failed.values())))
        finite = [value for name, value in values.items() if name not in self.failed]
        if finite:
            self._metrics["train"][what].append(sum(finite) / len(finite))
        return {name: loss for name, loss in losses.items() if name not in self.failed}

    def _answer_losses(self, model, inputs) -> torch.Tensor:
        """What training asks of the answer tokens of a batch, `[N]`."""
        if not self.args.hard_labels:
            return self._kd_losses(model, inputs, self.args.temperature, self.args.beta)
        student, labels = predicting(final_hidden_states(model, inputs), inputs)
        return cross_entropy(student, labels, self._head)

    def _kd_losses(self, model, inputs, temperature: float, beta: float) -> torch.Tensor:
        """The summands of Eq. 3 for the answer tokens of a batch, `[N]`."""
        student, _ = predicting(final_hidden_states(model, inputs), inputs)
        return divergence(student, inputs["teacher_hidden"], self._head, temperature, beta)

    def _reconstruction_loss(self, model, name: str) -> torch.Tensor:
        """
        Eq. 2, as a mean over P's tokens. The paper writes a sum; the mean keeps its weight beside Eq. 3, which is a mean,
        independent of P's length, and is what the authors' scripts compute.
        """
        inputs = self._reconstruction[name]
        hidden, labels = predicting(final_hidden_states(model, inputs), inputs)
        return cross_entropy(hidden, labels, self._head).mean()

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """
        KL at temperature 1, mean over the held-out answers' tokens; without queries, the reconstruction loss. With several
        prompts, that of each, `eval_kl_NAME`, and their mean. Beside the KL of the validation queries, that of no
        prompt on them, and the gap closed.
        """
        model = self._wrap_model(self.model, training=False)
        was_training = model.training
        model.eval()
        start = time.perf_counter()
        if self.args.kd_weight > 0:
            # Apple's GPUs have no doubles
            precision = torch.float if self.args.device.type == "mps" else torch.double
            metric, sums = "kl", torch.zeros(2, len(self.renderers), dtype=precision, device=self.args.device)
            for inputs in self.get_eval_dataloader(eval_dataset):
                inputs = self._prepare_inputs(inputs)
                kl = self._kd_losses(model, inputs, temperature=1.0, beta=0.0)
                sums.index_add_(
                    1, inputs["prompt"], torch.stack([kl.to(precision), torch.ones_like(kl, dtype=precision)])
                )
            total, count = self.accelerator.reduce(sums, reduction="sum")
            values = dict(zip(self.renderers, (total / count).tolist()))
        else:
            metric = "reconstruction_loss"
            values = {name: self._reconstruction_loss(model, name).item() for name in self.renderers}
        learning = [value for name, value in values.items() if name not in self.failed]
        metrics = {f"{metric_key_prefix}_{metric}": sum(learning) / len(learning)}
        if self._named:
            metrics |= {f"{metric_key_prefix}_{metric}_{name}": value for name, value in values.items()}
        if metric == "kl" and eval_dataset is None:
            # Not named like the KL of a prompt, which may be called "no_prompt"
            none = [self.no_prompt_kl[name] for name in values if name not in self.failed]
            metrics[f"{metric_key_prefix}_no_prompt_kl"] = sum(none) / len(none)
            gap = gap_closed(metrics[f"{metric_key_prefix}_kl"], metrics[f"{metric_key_prefix}_no_prompt_kl"])
            if gap is not None:
                metrics[f"{metric_key_prefix}_gap_closed"] = gap
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

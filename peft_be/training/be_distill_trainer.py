from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl

from ..adapters.create import with_adapter
from ..adapters.provenance import origin, stage_name
from ..checks import check_type
from ..data import query_dataset
from ..figures import gap_closed
from ..losses import OutputHead, cross_entropy, divergence
from ..prompting import PromptRenderer, is_prompt_of, prompt_fingerprint
from ..recipe import GGT_NAME
from ..tuner import BETokenConfig
from ..tuner.provenance import Provenance
from .be_distill_config import BEDistillConfig
from .ggt import GGT
from .init import start_rows
from .learning_rows import check_learning_rows
from .reconstruction import reconstruction_batches
from .row_trainer import (
    RowCollator,
    RowTrainer,
    final_hidden_states,
    has_flash_attention,
    predicting,
    tokenizer_of,
    unwrapped_on_failure,
)
from .teaching import Teaching
from .validation import ValidationSums


class BEDistillTrainer(RowTrainer):
    """
    Trainer of a prompt's [BE] rows, stages 1 and 2 of the paper (sections 2.2 and 2.3, Eq. 2-4, Algorithm 1).

    Teacher and student are the same frozen model: the teacher reads the full prompt P, the student [BE] in its place. The
    teacher works once, before the first step: P's key-value cache is shared by all queries, and the final hidden states
    of its answers are kept on disk, so that each step costs the student's forward and backward alone.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The causal LM. If it is not wrapped yet, an adapter is put on it: that of `peft_config`, or one with a single
            [BE] row; where `kd_weight` is below 1, with the [AE] row that the package ships for this backbone.
        args ([`BEDistillConfig`], *optional*):
            Configuration. If `None`, a default one is used.
        prompt (`str` or `list[dict]`):
            P: a system text, or the chat messages in front of the user's turn. A `dict` is for [`ManyPromptsTrainer`].
        train_dataset ([`~datasets.Dataset`] or `Iterable`, *optional*):
            Queries, in a column `query` or in any other form that [`as_queries`] takes, and, in an optional column
            `answer`, given answers to distil on instead of the teacher's own: texts, token ids, or `None` where the
            teacher is to answer. Not needed if `kd_weight=0`.
        eval_dataset ([`~datasets.Dataset`] or `Iterable`, *optional*):
            Held-out queries, with the same columns. Their KL chooses the checkpoint. Not needed if `kd_weight=0`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The model's tokenizer. If `None`, it is loaded by the model's name.
        peft_config ([`BETokenConfig`], *optional*):
            The adapter for a model that is not wrapped yet.
        callbacks (`list[~transformers.TrainerCallback]`, *optional*):
            Callbacks in addition to the default ones.
        on_teacher_progress (`Callable[[str, int, int], None]`, *optional*):
            Called with the split (`"train"` or `"validation"`), the number of its queries that are answered, and their total.

    Attributes:
        renderers (`dict[str, PromptRenderer]`): how queries are written, by the prompt's name, which is `"default"`.
        no_prompt_kl (`dict[str, float]`): by the prompt's name, the KL without a prompt on the validation queries, in
            nats a token; empty without queries.
        no_prompt_same_answers (`dict[str, float]`): the share of these answers that the model writes word for word without it.

    Raises:
        `ValueError`: no prompt or an empty one, no queries though `kd_weight > 0`, a prompt that leaves no room in the
            context for query and answer, no [AE] row though `kd_weight < 1`, or rows that could not learn, or would not
            be the only thing that learns: a frozen, disabled or merged adapter, or an adapter of another method.
        `FloatingPointError`: the start rows, hidden states of the model or, in a step, the loss are not finite.

    Example:

        ```python
        >>> from peft_be import BEDistillConfig, BEDistillTrainer

        >>> trainer = BEDistillTrainer(
        ...     model,
        ...     BEDistillConfig("pirate"),
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

    # Whether there are several prompts, by name
    _named = False

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: BEDistillConfig | None = None,
        prompt: str | list[dict[str, str]] | dict[str, str | list[dict[str, str]]] | None = None,
        train_dataset: Dataset | Iterable | None = None,
        eval_dataset: Dataset | Iterable | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: BETokenConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        on_teacher_progress: Callable[[str, int, int], None] | None = None,
    ):
        args = BEDistillConfig("be") if args is None else args
        check_type("args", args, BEDistillConfig)
        self._tokenizer = tokenizer_of(model, processing_class)
        given, reconstructs = model, args.kd_weight < 1 and args.use_ae_token
        model = with_adapter(model, self._tokenizer, reconstructs, peft_config)
        with unwrapped_on_failure(model, given):
            queries = {"train": train_dataset, "validation": eval_dataset}
            rows = self._prepare(model, args, prompt, queries, on_teacher_progress)
            super().__init__(
                model=model,
                args=args,
                data_collator=self._collate,
                train_dataset=rows["train"],
                eval_dataset=rows["validation"],
                processing_class=self._tokenizer,
                callbacks=callbacks,
                optimizer_cls_and_kwargs=(GGT, {"lr": args.learning_rate}) if args.optim == GGT_NAME else None,
            )

    @property
    def learning(self) -> list[str]:
        """The names of the prompts whose rows still learn."""
        return list(self.renderers)

    # What is made before the first step

    def _prepare(
        self,
        model: PeftModel,
        args: BEDistillConfig,
        prompt: str | list | dict | None,
        queries: dict[str, Dataset | Iterable | None],
        on_teacher_progress: Callable[[str, int, int], None] | None,
    ) -> dict[str, Dataset]:
        """
        Set the start rows and have the teacher answer. Returns the rows to train and to validate on.

        Not in TRL's hook for datasets: by then TRL has written the tokenizer's stop id into the base's generation config
        and turned gradient checkpointing on, and the teacher would be another model than the one that is served.
        """
        if prompt is None:
            raise ValueError(f"{type(self).__name__} needs the prompt that [BE] is to replace: pass `prompt`.")
        if isinstance(prompt, dict) != self._named:
            raise ValueError("BEDistillTrainer takes one prompt, and ManyPromptsTrainer a dict of prompts by name.")
        self._adapter = check_learning_rows(model, self._learns)
        config = model.peft_config[self._adapter]
        base = model.get_base_model().to(args.device)
        self._head, self._origin = OutputHead(base), origin(base, self._tokenizer)
        self._collator = RowCollator(self._tokenizer.pad_token_id or 0, has_flash_attention(base))
        self._prompts: dict[str, str | list] = prompt if isinstance(prompt, dict) else {"default": prompt}
        self.renderers = self._make_renderers(config)
        goes_on = args.init is None and not isinstance(prompt, dict) and is_prompt_of(config, prompt)
        self._earlier_stages = Provenance.of(config).stages if goes_on else []
        self._start_rms = self._start(model, args)
        self._reconstruction = {}
        if args.kd_weight < 1:
            ae_token_id = config.ae_token_id if args.use_ae_token else None
            if args.use_ae_token and ae_token_id is None:
                raise ValueError(
                    "Reconstruction (kd_weight below 1) needs a trained [AE] row: create the adapter with "
                    "use_ae_token=True and set the row, or train with kd_weight=1."
                )
            self._reconstruction = reconstruction_batches(base, self.renderers, ae_token_id, self._collator)
        self._teaching = self._make_teaching(base, self._head, self._tokenizer, args, on_teacher_progress)
        self.no_prompt_kl = self._teaching.no_prompt_kl
        self.no_prompt_same_answers = self._teaching.no_prompt_same_answers
        if args.kd_weight == 0:
            # The one training example of stage 1 is in compute_loss: the rows here only count the steps
            dummy = {"input_ids": [[0]], "labels": [[-100]], "length": [1], "prompt": [0]}
            return dict.fromkeys(queries, Dataset.from_dict(dummy))
        datasets = {split: None if given is None else query_dataset(given) for split, given in queries.items()}
        self._num_queries = {split: len(dataset or []) for split, dataset in datasets.items()}
        return self._teaching.rows(self.renderers, datasets, self._named)

    def _make_teaching(self, *args) -> Teaching:
        return Teaching(*args)

    def _make_renderers(self, config: BETokenConfig) -> dict[str, PromptRenderer]:
        count, be_token_ids = len(self._prompts), config.be_token_ids or []
        if not count or config.num_be_tokens % count:
            raise ValueError(
                f"{count} prompts cannot share {config.num_be_tokens} [BE] rows: each needs the same number of them."
            )
        self._rows_per_prompt = k = config.num_be_tokens // count
        renderers = {}
        for i, (name, prompt) in enumerate(self._prompts.items()):
            ids = be_token_ids[i * k : (i + 1) * k]
            # The rows may come from another prompt, and are about to stand for this one
            own = replace(config, num_be_tokens=len(ids), be_token_ids=ids, provenance=None)
            renderers[name] = PromptRenderer.for_adapter(own, self._tokenizer, prompt)
        return renderers

    def _start(self, model: PeftModel, args: BEDistillConfig) -> float:
        """Set the rows that training starts from, and return their root mean square."""
        if args.init is not None:
            rows = start_rows(
                model.get_base_model(), list(self.renderers.values()), self._rows_per_prompt, args.init, args
            )
            model.base_model.set_rows(self._adapter, rows)
            model.peft_config[self._adapter].provenance = None  # it described other rows
        rms = model.base_model.get_rows(self._adapter).square().mean().sqrt().item()
        if not 0 < rms < math.inf:
            raise FloatingPointError(
                f"The start rows have a root mean square of {rms}, and nothing can learn from there: the "
                "model's embeddings are damaged, or init=None goes on from rows that were never set."
            )
        return rms

    def preview(self) -> list[dict]:
        """
        What [BE] is to imitate: the teacher's answers to the first training queries, of the first prompt if there are
        several, and the model's answers without a prompt. Changes no random numbers.

        Returns:
            `list[dict]`: the texts `full` and `no_prompt`, and their `query`. Empty for a training without queries.
        """
        return self._teaching.preview(next(iter(self.renderers.values())))

    # What is recorded

    def provenance(self) -> Provenance | None:
        training = {"steps": self.state.global_step}
        if self.args.kd_weight > 0:
            training |= {f"{split}_queries": number for split, number in self._num_queries.items()}
            if self.state.best_metric is not None and self.args.metric_for_best_model == "kl":
                training["validation_kl"] = self.state.best_metric
                training["validation_kl_no_prompt"] = self.no_prompt_kl["default"]
        return self.provenance_of("default", training)

    def provenance_of(self, name: str, training: Mapping[str, float | None]) -> Provenance:
        """
        What the configuration of an adapter with the rows of one of the prompts records about them.

        Args:
            name (`str`): the prompt.
            training (`dict`): figures for the model card: `steps`, `train_queries`, `validation_queries`,
                `validation_kl`, `validation_kl_no_prompt`.
        """
        return replace(
            self._origin,
            prompt_sha256=prompt_fingerprint(self._prompts[name]),
            prompt_tokens=len(self.renderers[name].prompt_ids),
            kept_tokens=len(self.renderers[name].kept_ids) or None,
            stages=list(dict.fromkeys([*self._earlier_stages, stage_name(self.args.kd_weight)])),
            training=dict(training),
        )

    def _collate(self, rows: list[dict]) -> dict[str, Any]:
        if "teacher" in rows[0]:
            rows = [{**row, "teacher_hidden": self._teaching.hidden[row["teacher"]]} for row in rows]
        return self._collator(rows)

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
        # Without distillation, every step reconstructs
        interval = args.reconstruction_interval if args.kd_weight > 0 else 1
        if args.kd_weight < 1 and self.state.global_step % interval == 0:
            learning = losses if args.kd_weight > 0 else self.learning
            values = {name: self._reconstruction_loss(model, name) for name in learning}
            for name, value in self._checked("reconstruction_loss", values).items():
                losses[name] = losses.get(name, 0.0) + (1 - args.kd_weight) * interval * value
        # A sum, since no row takes part in two prompts' losses: each has the gradient it would have alone
        start = torch.zeros((), device=args.device, requires_grad=True)
        loss = sum((value for name, value in losses.items() if name in self.learning), start=start)
        return (loss, {}) if return_outputs else loss

    def _checked(self, what: str, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Log a part of the loss, averaged over the prompts, and give up the prompts for which it is not finite."""
        own = {name: loss.detach() for name, loss in losses.items() if name in self.learning}
        # The only time that a step waits for a GPU, however many prompts there are
        values = dict(zip(own, torch.stack(list(own.values())).tolist())) if own else {}
        for name, value in values.items():
            if not math.isfinite(value):
                self._give_up(
                    name,
                    f"The {what.replace('_', ' ')} is {value} at step {self.state.global_step}: lower the learning "
                    "rate, or use a wider dtype for the base model.",
                )
        finite = [value for name, value in values.items() if name in self.learning]
        if finite:
            self._metrics["train"][what].append(sum(finite) / len(finite))
        return {name: loss for name, loss in losses.items() if name in self.learning}

    def _give_up(self, name: str, reason: str) -> None:
        raise FloatingPointError(reason)

    def _answer_losses(self, model, inputs) -> torch.Tensor:
        """The training loss of each answer token of a batch, `[N]`."""
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
        Eq. 2, as a mean over P's tokens. The paper writes a sum. Eq. 3 is a mean, so that with a sum the weight between
        the two would depend on P's length; the authors' scripts compute the mean, too.
        """
        inputs = self._reconstruction[name]
        hidden, labels = predicting(final_hidden_states(model, inputs), inputs)
        return cross_entropy(hidden, labels, self._head).mean()

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """
        Measure the KL at temperature 1, averaged over the tokens of the held-out answers (`eval_kl`), and the share of these
        answers that greedy decoding would write word for word (`eval_same_answers`), unless the teacher samples them or `max_kd_tokens`
        cuts them; without queries, the reconstruction loss.
        Several prompts have a value each, such as `eval_kl_NAME`, and `eval_kl` is their mean. On the validation queries,
        the KL without a prompt (`eval_no_prompt_kl`) and the gap closed (`eval_gap_closed`) are given, too.
        """
        model = self._wrap_model(self.model, training=False)
        was_training = model.training
        model.eval()
        start = time.perf_counter()
        if self.args.kd_weight > 0:
            sums = ValidationSums(len(self.renderers), self.args.device)
            for inputs in self.get_eval_dataloader(eval_dataset):
                inputs = self._prepare_inputs(inputs)
                student, labels = predicting(final_hidden_states(model, inputs), inputs)
                kl = divergence(student, inputs["teacher_hidden"], self._head)
                sums.add(inputs, kl, self._head.most_probable(student) == labels)
            means = sums.means(self.accelerator, self.args.answers_are_whole_and_greedy)
        else:
            losses = [self._reconstruction_loss(model, name).item() for name in self.renderers]
            means = {"reconstruction_loss": losses}
        metrics: dict[str, float] = {}
        for metric, values in means.items():
            metrics |= self._metrics_of(metric, dict(zip(self.renderers, values)))
        if "kl" in metrics and eval_dataset is None:
            # Not `kl_no_prompt`: that would be the KL of a prompt called "no_prompt"
            none = [self.no_prompt_kl[name] for name in self.learning]
            metrics["no_prompt_kl"] = sum(none) / len(none)
            gap = gap_closed(metrics["kl"], metrics["no_prompt_kl"])
            if gap is not None:
                metrics["gap_closed"] = gap
        metrics["runtime"] = time.perf_counter() - start
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        model.train(was_training)
        return metrics

    def _metrics_of(self, metric: str, values: dict[str, float]) -> dict[str, float]:
        """The metrics of a validation, from its result for each prompt."""
        learning = [values[name] for name in self.learning]
        return {metric: sum(learning) / len(learning)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # The rows' norm: one that runs away leaves the range of what the model has seen
        rows = self.accelerator.unwrap_model(self.model).base_model.get_rows(self._adapter)
        logs["be_norm"] = rows.norm(dim=-1).mean().item()
        super().log(logs, start_time)

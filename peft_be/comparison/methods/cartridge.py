from __future__ import annotations

import copy
import itertools
import statistics
import time
from typing import cast

import torch
from peft import CartridgeConfig, PeftModel, get_peft_model, initialize_kv_prefix_from_past_key_values
from torch.utils.data import DataLoader, Dataset
from transformers import get_cosine_schedule_with_warmup

from ...checks import COUNT, POSITIVE, check_number
from ...evaluation.stand_in import StandIn, render_users_turn
from ...losses import OutputHead, divergence
from ...machine.memory import freed_memory_kept
from ...machine.quantised import keep_backward
from ...prompting import PromptRenderer
from ...teacher import SharedPrefix, answer_divergences, can_share_prefix
from ...training.budget import Budget, sample_batches, time_batches
from ...training.row_trainer import RowCollator, final_hidden_states, predicting
from .method import Job, Method


WARMUP_STEPS = 10


class Cartridge(Method):
    """
    Trained keys and values of all layers (Cartridges, arXiv 2506.06266), by PEFT's `CARTRIDGE`. They stand for everything in front of the
    user's turn, start as the keys and values of its first tokens, and learn from the same answers of the same teacher as
    [BE], by Eq. 3 at temperature 1. The first slot is frozen, as the method's authors recommend, where there are more.

    A slot has `2 * layers * kv_heads * head_dim` numbers, where a row of [BE] has d: see [`StandIn.num_bytes`].

    Args:
        num_tokens (`int`, *optional*, defaults to `1`): slots.
        learning_rate (`float`, *optional*, defaults to `2e-2`): Adam's highest learning rate, with a cosine schedule.
        batch_size (`int`, *optional*, defaults to `2`): answers a step.
        max_steps (`int`, *optional*, defaults to `600`): used where the job does not set a number.
        eval_steps (`int`, *optional*, defaults to `100`): steps between validations; the slots that validated best are kept.

    Raises:
        `ValueError`: no slot, or a model whose attention cannot be given keys and values.
    """

    trains = True

    def __init__(
        self,
        num_tokens: int = 1,
        learning_rate: float = 2e-2,
        batch_size: int = 2,
        max_steps: int = 600,
        eval_steps: int = 100,
    ):
        if num_tokens < 1:
            raise ValueError(f"A cartridge needs at least one slot, got {num_tokens}.")
        check_number("learning_rate", learning_rate, POSITIVE)
        for name, value in {"batch_size": batch_size, "max_steps": max_steps, "eval_steps": eval_steps}.items():
            check_number(name, value, COUNT, whole=True)
        self.num_tokens = num_tokens
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.eval_steps = eval_steps

    def fit(self, job: Job) -> StandIn:
        if not can_share_prefix(job.model):
            raise ValueError(
                "A cartridge needs a model whose layers all attend to the whole past, and this one's do not."
            )
        budget = Budget(job.max_minutes)
        rows = {split: self._rows(job, split) for split in ("train", "validation")}
        torch.manual_seed(job.seed)
        head, pad = OutputHead(job.model), job.tokenizer.pad_token_id or 0
        renderer = PromptRenderer(job.tokenizer)
        none = [renderer.no_prompt(query) for query in job.splits.validation]
        _, kl = answer_divergences(job.model, head, none, job.teacher_answers("validation"), pad_token_id=pad)
        no_prompt_kl = torch.cat(kl).mean().item()
        frozen = 1 if self.num_tokens > 1 else 0
        config = CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.num_tokens, num_frozen_tokens=frozen)
        model = get_peft_model(job.model, config)
        first = PromptRenderer(job.tokenizer, job.prompt).full(job.splits.train[0])[: self.num_tokens]
        with torch.no_grad():
            cache = job.model(input_ids=torch.tensor([first], device=job.model.device), use_cache=True).past_key_values
        initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)
        with freed_memory_kept(job.model.device):
            log = self._train(model, rows, job, budget)
        cache = model.eval().get_prompt(batch_size=1)
        keys = [layer.keys[0].detach().clone() for layer in cache.layers]
        values = [layer.values[0].detach().clone() for layer in cache.layers]
        log = [{**entry, "eval_no_prompt_kl": no_prompt_kl} for entry in log]
        return StandIn(prefix=SharedPrefix.from_states(keys, values), log=log)

    def _rows(self, job: Job, split: str) -> list[dict]:
        """Rows `q answer`, each with the teacher's hidden states for the answer."""
        users_turn = render_users_turn(job.model, job.tokenizer)
        heads = [users_turn(query) for query in getattr(job.splits, split)]
        return [
            {"input_ids": head + a.ids, "labels": [-100] * len(head) + a.ids, "teacher_hidden": a.hidden}
            for head, a in zip(heads, job.teacher_answers(split))
        ]

    def _train(self, model: PeftModel, rows: dict[str, list[dict]], job: Job, budget: Budget) -> list[dict]:
        keep_backward(job.model)
        head, collate = OutputHead(job.model), RowCollator(job.tokenizer.pad_token_id or 0)
        loaders: dict[str, DataLoader] = {
            "train": DataLoader(cast(Dataset, rows["train"]), self.batch_size, shuffle=True, collate_fn=collate),
            "validation": DataLoader(cast(Dataset, rows["validation"]), 16, collate_fn=collate),
        }
        parameters = [p for p in model.parameters() if p.requires_grad]

        def kl(batch: dict) -> torch.Tensor:
            batch = {name: tensor.to(job.model.device) for name, tensor in batch.items()}
            student, _ = predicting(final_hidden_states(model, batch), batch)
            return divergence(student, batch["teacher_hidden"], head)

        @torch.no_grad()
        def validate() -> float:
            return torch.cat([kl(batch) for batch in loaders["validation"]]).cpu().double().mean().item()

        steps = job.max_steps or self.max_steps
        if budget.seconds is not None:
            durations = time_batches(lambda batch: kl(batch).mean(), sample_batches(loaders["train"]), budget.left())
            model.zero_grad()
            begin = time.perf_counter()
            validate()
            validation = (time.perf_counter() - begin) / self.eval_steps
            steps = min(steps, max(1, int(budget.left() / (statistics.mean(durations) + validation))))
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, steps)
        best, kept, log = float("inf"), None, []
        batches = itertools.chain.from_iterable(itertools.repeat(loaders["train"]))
        for step, batch in enumerate(itertools.islice(batches, steps), start=1):
            kl(batch).mean().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % self.eval_steps == 0 or step == steps:
                log.append({"step": step, "eval_kl": validate()})
                if log[-1]["eval_kl"] < best:
                    best, kept = log[-1]["eval_kl"], copy.deepcopy([p.detach() for p in parameters])
            if job.on_progress:
                job.on_progress("cartridge", step, steps, log[-1] if log else {})
        if kept is None:
            raise FloatingPointError("The cartridge's KL is not a finite number: lower its learning rate.")
        with torch.no_grad():
            for parameter, value in zip(parameters, kept):
                parameter.copy_(value)
        return log

"""Training on a GPU: the teacher, every stage, many prompts, resuming, and where a step waits for the device."""

import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from peft_be import (
    AEConfig,
    AETrainer,
    BEDistillConfig,
    BEDistillTrainer,
    PromptJob,
    PromptRenderer,
    compress_prompt,
    compress_prompts,
)
from peft_be.adapters.create import add_adapter
from peft_be.losses import OutputHead
from peft_be.teacher import AnswerSettings, answer_divergences, generate_answers, share_prefix
from peft_be.training.ggt import GGT
from peft_be.training.many_prompts import ManyPromptsTrainer

from ..tiny import save_tiny_llama


pytestmark = pytest.mark.gpu

PROMPT = "You are a lighthouse keeper. You answer in short sentences, and you never leave the island. " * 4
QUERIES = [f"What did you see on day {number}, in the morning?" for number in range(12)]
JOBS = [
    PromptJob("keeper", PROMPT, QUERIES[:8]),
    PromptJob("cook", "You cook, and you speak of nothing but soup. " * 6, [f"How long do I cook {i} eggs?" for i in range(6)]),
]  # fmt: skip
FAST = {"max_steps": 6, "eval_steps": 3, "save_steps": 3, "max_answer_length": 8}


def rows_of(folder: Path) -> torch.Tensor:
    (rows,) = load_file(folder / "adapter_model.safetensors").values()
    return rows


def apart(rows: torch.Tensor, others: torch.Tensor) -> float:
    return ((rows - others).abs().max() / others.square().mean().sqrt()).item()


def make_trainer(model, tokenizer, folder, prompt=PROMPT, **changes):
    queries = {"query": QUERIES}
    if isinstance(prompt, dict):
        queries = {"query": QUERIES * len(prompt), "prompt_name": [name for name in prompt for _ in QUERIES]}
    datasets = [Dataset.from_dict({name: column[::n] for name, column in queries.items()}) for n in (1, 4)]
    args = BEDistillConfig(str(folder), **{**FAST, **changes})
    trainer = ManyPromptsTrainer if isinstance(prompt, dict) else BEDistillTrainer
    return trainer(model, args, prompt, *datasets, processing_class=tokenizer)


def with_adapter(base, tokenizer, k=1):
    ae_row = torch.linspace(-0.1, 0.1, base.config.hidden_size)[None]
    return add_adapter(base, tokenizer, k, ae_row)


def test_the_teachers_shared_prefix(model, tokenizer, record_property):
    """The same answers as without it, up to the rounding of 16 bits."""
    renderer = PromptRenderer(tokenizer, PROMPT)
    prompts = [renderer.full(query) for query in QUERIES]
    prefix = share_prefix(model, prompts)
    assert prefix is not None and prefix.keys[0].device == model.device
    settings = AnswerSettings(max_new_tokens=8, batch_size=5)
    answers = {name: generate_answers(model, prompts, settings, 2, given) for name, given in (("shared", prefix), ("plain", None))}  # fmt: skip
    same = sum(a.ids == b.ids for a, b in zip(*answers.values())) / len(prompts)
    record_property("same_answers", same)
    _, kl = answer_divergences(model, OutputHead(model), prompts, answers["plain"], prefix=prefix)
    record_property("kl", torch.cat(kl).mean().item())
    assert same > 0.5 and torch.cat(kl).mean() < 1e-2


@pytest.mark.parametrize(
    "changes",
    [
        {"kd_weight": 0.0},
        {"kd_weight": 0.9},
        {"kd_weight": 1.0},
        {"kd_weight": 0.9, "gradient_checkpointing": True},
        {"kd_weight": 1.0, "optim": "adamw_torch"},
    ],
    ids=["stage 1", "joint", "stage 2", "checkpointing", "AdamW"],
)
def test_stages(model, tokenizer, tmp_path, changes):
    peft_model = with_adapter(model, tokenizer)
    trainer = make_trainer(peft_model, tokenizer, tmp_path, **changes)
    before = {name: p.detach().clone() for name, p in peft_model.named_parameters()}
    trainer.train()
    changed = {name for name, p in peft_model.named_parameters() if not torch.equal(p, before[name])}
    assert [name.split(".")[-3:] for name in changed] == [["be_token_embedding", "default", "weight"]]
    assert trainer.state.best_metric < float("inf") and trainer.model.get_rows("default").isfinite().all()


def test_stage_0(model, tokenizer, tmp_path):
    texts = [f"The ship sails over the calm sea in the morning light, and nobody speaks, day {i}." for i in range(8)]
    args = AEConfig(str(tmp_path), max_steps=4, min_passage_length=8, max_passage_length=16, save_strategy="no")
    trainer = AETrainer(model, args, Dataset.from_dict({"text": texts}), processing_class=tokenizer)
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0


def test_many_prompts_become_what_each_becomes_alone(make_model, tokenizer, tmp_path, record_property):
    """In float32, where nothing but the order of sums differs."""
    together = compress_prompts(JOBS, tmp_path / "many", model=make_model(torch.float32), tokenizer=tokenizer, **FAST)
    for job, result in zip(JOBS, together):
        assert result.error is None
        model = make_model(torch.float32)
        alone = compress_prompt(job.prompt, job.queries, tmp_path / job.name, model=model, tokenizer=tokenizer, **FAST)
        found = apart(rows_of(result.directory), rows_of(alone.directory))
        record_property(f"{job.name}_apart", found)
        assert found < 1e-2


def test_a_resumed_run_ends_where_it_would_have_ended(make_model, tokenizer, tmp_path, device, record_property):
    """Bit by bit on the CPU. On a GPU, kernels may add in another order each time: `again_apart` says how much that does."""

    def run(folder, stop_at=None, **changes):
        def progress(stage, done, total, values):
            if stage == "stage 2" and done == stop_at:
                raise KeyboardInterrupt

        common = {"model": make_model(), "tokenizer": tokenizer, "on_progress": progress, **FAST, "max_steps": 12}
        return rows_of(compress_prompt(PROMPT, QUERIES, tmp_path / folder, **common, **changes).directory)

    whole, again = run("whole"), run("again")
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop_at=8)
    resumed = run("cut", resume=True)
    record_property("again_apart", apart(again, whole))
    record_property("resumed_apart", apart(resumed, whole))
    assert apart(resumed, whole) <= (0.0 if device.type == "cpu" else 0.05)


def test_a_budget_is_kept(model, tokenizer, tmp_path, record_property):
    done = compress_prompt(
        PROMPT, QUERIES, tmp_path / "out", model=model, tokenizer=tokenizer, max_minutes=0.1,
        **{**FAST, "max_steps": 5000, "eval_steps": 100, "save_steps": 100},
    )  # fmt: skip
    record_property("budget_s", 6.0)
    record_property("used_s", done.report["seconds"])
    assert done.report["steps"] >= 1 and done.report["seconds"] < 20


def test_device_map_auto_trains(tmp_path, tokenizer):
    folder = save_tiny_llama(tmp_path / "base", tokenizer, width=64)
    base = AutoModelForCausalLM.from_pretrained(folder, device_map="auto", dtype=torch.bfloat16)
    trainer = make_trainer(base.requires_grad_(False), tokenizer, tmp_path / "out", kd_weight=1.0)
    trainer.train()
    assert trainer.state.global_step == FAST["max_steps"]


def test_ggt_is_the_same_on_the_cpu(device):
    torch.manual_seed(0)
    mix = torch.linalg.qr(torch.randn(64, 64)).Q * torch.logspace(0, -3, 64)
    gradients = [1e-3 * torch.randn(3, 64) @ mix.T for _ in range(20)]
    ends = []
    for where in (torch.device("cpu"), device):
        rows = torch.zeros(3, 64, device=where, requires_grad=True)
        optimizer = GGT([rows])
        for gradient in gradients:
            rows.grad = gradient.to(where)
            optimizer.step()
        ends.append(rows.detach().cpu())
    torch.testing.assert_close(*ends, rtol=1e-2, atol=1e-3 * ends[0].abs().max().item())


class SyncWatch(TrainerCallback):
    """What CUDA itself says of each step: the lines at which the host waited for the device."""

    def __init__(self):
        self.steps: list[Counter] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._caught = warnings.catch_warnings(record=True)
        self._log = self._caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

    def on_step_end(self, args, state, control, **kwargs):
        torch.cuda.set_sync_debug_mode("default")
        found = [w for w in self._log if "called a synchronizing" in str(w.message)]
        self._caught.__exit__(None, None, None)
        self.steps.append(Counter(f"{Path(w.filename).name}:{w.lineno}" for w in found))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA says where it was waited for")
@pytest.mark.parametrize("several", [False, True], ids=["one prompt", "several"])
def test_a_step_waits_for_its_loss_alone(model, tokenizer, tmp_path, several, record_property):
    """The others are torch's, in GGT, and transformers', in each forward: see `tests/training/test_host_syncs.py`."""
    prompt = {job.name: job.prompt for job in JOBS} if several else PROMPT
    peft_model = with_adapter(model, tokenizer, k=1 + several)
    changes = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "logging_steps": 100}
    trainer = make_trainer(peft_model, tokenizer, tmp_path, prompt, kd_weight=1.0, **changes)
    watch = SyncWatch()
    trainer.callback_handler.callbacks.insert(0, watch)
    trainer.train()
    last = watch.steps[-1]
    record_property("waits", dict(last))
    assert 0 < last.total() <= 3 and last == watch.steps[-2]
    assert any(line.startswith("be_distill_trainer") for line in last)

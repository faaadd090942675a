"""Prompts that learn together become what each becomes alone."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from peft_be import PromptJob, compress_prompt, compress_prompts
from peft_be.runs.manifest import load_manifest
from peft_be.training import BEDistillConfig
from peft_be.training.many_prompts import ManyPromptsTrainer, PromptBatchSampler
from peft_be.training.row_trainer import EpochLengthSampler


# Of different length, with different numbers of queries: epochs end at different steps, some with half a batch
JOBS = [
    PromptJob(
        "keeper", "You keep a lighthouse, and you never leave it.", [f"What was on day {i}?" for i in range(12)]
    ),
    PromptJob("cook", "You cook. " * 12, [f"How long do I cook {i} eggs, and in what?" for i in range(7)]),
    PromptJob(
        "poet", [{"role": "system", "content": "All you say rhymes."}], [f"Count to {i}!" for i in range(10, 15)]
    ),
]
# Rows learn in fp32; sums over a batch run in another order. Measured on SmolLM2: at most 6e-6 of the rows' RMS, often none
TOLERANCE = 1e-3
ARGS = {"max_steps": 12, "eval_steps": 3, "max_answer_length": 6, "logging_steps": 1}


@pytest.fixture(autouse=True)
def caches(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))


def rows(folder):
    (tensor,) = load_file(folder / "adapter_model.safetensors").values()
    return tensor


def assert_like_alone(results, folder, load, args, tolerance):
    for job, result in zip(JOBS, results):
        model, tokenizer = load()
        alone = compress_prompt(
            job.prompt, job.queries, folder / job.name, model=model, tokenizer=tokenizer, save_steps=3, **args
        )
        assert result.error is None and result.name == job.name
        together, expected = rows(result.directory), rows(alone.directory)
        assert (together - expected).abs().max() < tolerance * expected.square().mean().sqrt()
        assert result.report["best"]["step"] == alone.report["best"]["step"]
        assert result.report["best"]["kl"] == pytest.approx(alone.report["best"]["kl"], rel=tolerance, abs=1e-6)
        assert result.report["seen_queries"] == alone.report["seen_queries"]
        configs = [json.loads((d / "adapter_config.json").read_text()) for d in (result.directory, alone.directory)]
        kl = [config["provenance"]["training"].pop("validation_kl") for config in configs]
        assert configs[0] == configs[1] and kl[0] == pytest.approx(kl[1], rel=tolerance, abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_be_tokens": 2, "group_size": 2},
        {"max_grad_norm": 1e-4},
        # Overshoots: prompts stop early, at steps 15, 6 and 39. Each validation is 1.1 % from the best one so far or farther, so
        # that no processor's rounding decides
        {"learning_rate": 1.0, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_steps": 40},
    ],
    ids=["default", "k=2, groups", "clipped", "early stop"],
)
def test_each_prompt_becomes_what_it_becomes_alone(tiny_model, tiny_tokenizer, tmp_path, monkeypatch, changes):
    if "learning_rate" in changes:
        for module in ("runs.compress_many", "runs.train"):
            monkeypatch.setattr(f"peft_be.{module}.PATIENCE", 1)
    args = {**ARGS, **changes}
    results = compress_prompts(JOBS, tmp_path / "many", model=tiny_model, tokenizer=tiny_tokenizer, **args)
    assert len({tuple(rows(result.directory).flatten().tolist()) for result in results}) == len(JOBS)
    args.pop("group_size", None)
    base = tiny_model
    assert_like_alone(results, tmp_path, lambda: (unwrapped(base), tiny_tokenizer), args, TOLERANCE)
    if "learning_rate" in changes:
        assert len({result.report["steps"] for result in results}) > 1


def unwrapped(model):
    """The model without the adapter that the last compression left on it."""
    embedding = model.get_input_embeddings()
    if hasattr(embedding, "base_layer"):
        model.set_input_embeddings(embedding.base_layer)
        del model.peft_config
    return model


@pytest.mark.slow
def test_each_prompt_becomes_what_it_becomes_alone_on_the_real_model(smollm2_dir, tmp_path):
    from peft_be import load_model

    args = {**ARGS, "max_steps": 6, "max_answer_length": 16}
    results = compress_prompts(JOBS, tmp_path / "many", model=smollm2_dir, **args)
    assert_like_alone(results, tmp_path, lambda: load_model(smollm2_dir), args, TOLERANCE)


def test_with_reconstruction_each_prompt_has_the_gradient_it_has_alone(tiny_model, tiny_tokenizer, tmp_path):
    from peft import get_peft_model

    from peft_be import BETokenConfig

    def gradient(jobs):
        config = BETokenConfig(
            task_type="CAUSAL_LM",
            num_be_tokens=len(jobs),
            be_token_ids=list(range(3, 3 + len(jobs))),
            use_ae_token=True,
            ae_token_id=15,
        )
        model = get_peft_model(unwrapped(tiny_model), config)
        model.base_model.set_ae_row("default", torch.linspace(-0.1, 0.1, 32)[None])
        queries = Dataset.from_dict(
            {"query": [q for j in jobs for q in j.queries], "prompt_name": [j.name for j in jobs for _ in j.queries]}
        )
        args = BEDistillConfig(str(tmp_path), kd_weight=0.7, max_answer_length=6, per_device_train_batch_size=4)
        run = ManyPromptsTrainer(
            model, args, {j.name: j.prompt for j in jobs}, queries, queries, processing_class=tiny_tokenizer
        )
        run.compute_loss(model, run._prepare_inputs(next(iter(run.get_train_dataloader())))).backward()
        return model.base_model.rows_grad("default").clone()

    together = gradient(JOBS)
    for number, job in enumerate(JOBS):
        torch.testing.assert_close(together[number : number + 1], gradient([job]), rtol=1e-3, atol=1e-7)


def test_batches_are_those_of_each_prompt_alone():
    owners, lengths = [0] * 5 + [1] * 3, [9, 3, 5, 7, 1, 4, 8, 6]
    learning = {0, 1}
    batches = list(PromptBatchSampler(owners, lengths, 2, 7, seed=5, is_learning=learning.__contains__))
    for owner, first, count in ((0, 0, 5), (1, 5, 3)):
        expected = []
        for epoch in range(4):
            sampler = EpochLengthSampler(2, lengths[first : first + count], 5)
            sampler.set_epoch(epoch)
            order = [first + i for i in sampler]
            expected += [order[i : i + 2] for i in range(0, count, 2)]
        assert [[row for row in batch if owners[row] == owner] for batch in batches] == expected[:7]


def test_a_stopped_prompt_changes_nothing_for_the_others():
    owners, lengths = [0] * 5 + [1] * 3, [9, 3, 5, 7, 1, 4, 8, 6]
    sampler = PromptBatchSampler(owners, lengths, 2, 7, seed=5, is_learning=lambda owner: True)
    both = list(sampler)
    sampler.is_learning = lambda owner: owner == 1
    assert list(sampler) == [[row for row in batch if owners[row] == 1] for batch in both]
    sampler.is_learning = lambda owner: False
    assert list(sampler) == []


def test_prompts_that_cannot_be_compressed_do_not_stop_the_others(tiny_model, tiny_tokenizer, tmp_path):
    queries = JOBS[0].queries
    jobs = [
        JOBS[0],
        PromptJob("empty", "  ", queries),
        PromptJob("long", "word " * 600, queries),
        PromptJob("few", "Be kind.", ["only one"]),
        JOBS[1],
    ]
    results = compress_prompts(jobs, tmp_path / "out", model=tiny_model, tokenizer=tiny_tokenizer, **ARGS)
    assert [result.error is None for result in results] == [True, False, False, False, True]
    assert "empty" in results[1].error and "does not fit" in results[2].error and "at least two" in results[3].error
    summary = json.loads((tmp_path / "out" / "training.json").read_text())["prompts"]
    assert [entry["error"] for entry in summary] == [result.error for result in results]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cook", "keeper", "training.json"]


def test_a_prompt_whose_loss_breaks_does_not_stop_the_others(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    original = ManyPromptsTrainer._kd_losses

    def broken(self, model, inputs, temperature, beta):
        losses = original(self, model, inputs, temperature, beta)
        return losses.masked_fill(inputs["prompt"] == 1, float("nan")) if self.state.global_step == 4 else losses

    whole = compress_prompts(JOBS, tmp_path / "whole", model=tiny_model, tokenizer=tiny_tokenizer, **ARGS)
    monkeypatch.setattr(ManyPromptsTrainer, "_kd_losses", broken)
    results = compress_prompts(JOBS, tmp_path / "out", model=unwrapped(tiny_model), tokenizer=tiny_tokenizer, **ARGS)
    assert "nan at step 4" in results[1].error and not (tmp_path / "out" / "cook").exists()
    for i in (0, 2):
        torch.testing.assert_close(rows(results[i].directory), rows(whole[i].directory), rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_goes_on(tiny_model, tiny_tokenizer, tmp_path):
    common = {"tokenizer": tiny_tokenizer, "group_size": 2, **ARGS}
    whole = compress_prompts(JOBS, tmp_path / "whole", model=tiny_model, **common)

    for stop_at in (("1-2 of 3: stage 2", 7), ("3-3 of 3: stage 2", 4)):

        def interrupt(what, done, total, values, stop_at=stop_at):
            if (what, done) == stop_at:
                raise KeyboardInterrupt

        folder = tmp_path / stop_at[0][:3]
        with pytest.raises(KeyboardInterrupt):
            compress_prompts(JOBS, folder, model=unwrapped(tiny_model), on_progress=interrupt, **common)
        again = compress_prompts(JOBS, folder, model=unwrapped(tiny_model), resume=True, **common)
        for left, right in zip(whole, again):
            assert torch.equal(rows(left.directory), rows(right.directory))
            assert left.report["log"] == right.report["log"] and left.report["best"] == right.report["best"]


@pytest.mark.parametrize("names", [[], ["a", "a"], ["../a"], [""], ["training"]])
def test_names_are_checked_before_any_work(names, tmp_path):
    with pytest.raises(ValueError, match="prompt"):
        compress_prompts([PromptJob(name, "Be kind.", ["a", "b"]) for name in names], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_manifest(tmp_path):
    (tmp_path / "p.txt").write_text("Be kind.")
    (tmp_path / "q.txt").write_text("Who?\nWhy?\n")
    lines = [
        {"name": "a", "prompt": "p.txt", "queries": "q.txt"},
        {"name": "b", "prompt": "missing.txt", "queries": "q.txt"},
        {"name": "c", "prompt": "p.txt", "queries": "q.txt", "test_queries": "q.txt"},
    ]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    jobs, errors = load_manifest(manifest)
    assert jobs == [
        PromptJob("a", "Be kind.", ["Who?", "Why?"]),
        PromptJob("c", "Be kind.", ["Who?", "Why?"], ["Who?", "Why?"]),
    ]
    assert list(errors) == ["b"] and "missing.txt" in errors["b"]
    for text, message in (
        ("{", "not JSON"),
        ('{"name": "a"}', "Line 1 of .* lacks prompt, queries: .* object with name, prompt, queries"),
        ('{"name": "a", "prompt": "p.txt", "queries": 3}', "no text as queries"),
        (
            '{"name": "a", "prompt": "p.txt", "queries": "q.txt", "lr": 1}',
            "unknown key 'lr': .* name, prompt, queries and",
        ),
        ('{"name": "a", "query": "q.txt", "lr": "1"}', "unknown keys 'query', 'lr': .* test_queries and query_field"),
        ("", "no prompts"),
    ):
        manifest.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_manifest(manifest)
    with pytest.raises(FileNotFoundError, match="no manifest"):
        load_manifest(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("kind", [RuntimeError, torch.OutOfMemoryError, ValueError])
def test_an_error_ends_a_group_and_not_a_run(tiny_model, tiny_tokenizer, tmp_path, monkeypatch, kind):
    original = ManyPromptsTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        if "bad" in self.renderers:
            raise kind("it broke")
        return original(self, *args, **kwargs)

    queries = [f"What was on day {i}?" for i in range(8)]
    jobs = [
        PromptJob(name, f"You are {name}, and you keep a lighthouse.", queries) for name in ("good", "bad", "other")
    ]

    def run(**options):
        args = {"model": tiny_model, "tokenizer": tiny_tokenizer, **ARGS, **options}
        return compress_prompts(jobs, tmp_path / "out", **args)

    with monkeypatch.context() as patch:
        patch.setattr(ManyPromptsTrainer, "compute_loss", compute_loss)
        good, bad, other = run()
    assert good.error is other.error is None and bad.directory is None
    assert ("memory" if kind is torch.OutOfMemoryError else "it broke") in bad.error
    before = (good.directory / "adapter_model.safetensors").stat().st_mtime_ns
    results = run(resume=True)
    assert [result.error for result in results] == [None] * 3
    assert (good.directory / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert not (tmp_path / "out" / "training").exists()
    assert [result.report["best"] for result in run(resume=True)] == [result.report["best"] for result in results]

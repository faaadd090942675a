"""The benchmarks as programs, with settings that mean nothing, and the arithmetic between their measurements."""

import time
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model

from peft_be import BETokenConfig, load_model

from ..exports import save_adapter
from ..tiny import save_tiny_llama


TINY = ("--queries", 4, "--answer-length", 4, "--batch-size", 2)


def test_training(run_script, tiny_dir):
    report = run_script("training.py", "--model", tiny_dir, "--prompt-tokens", 40, 60, "--rounds", 2, *TINY)
    assert [result["prompt_tokens"] for result in report["results"]] == [40, 60]
    for result in report["results"]:
        rates = result["answer_tokens_per_s"]
        assert result["speedup"] == pytest.approx(rates["ours, teacher included"] / rates["reference"])
        assert rates["ours, teacher included"] < rates["ours, steps alone"]
        assert rates["cartridge, answers included"] < rates["cartridge, steps alone"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The output row of")
def test_engines(run_script, tiny_dir, tmp_path):
    adapter = save_adapter(str(tiny_dir), tmp_path / "a")
    options = ("--model", tiny_dir, "--requests", 2, "--max-new-tokens", 4)
    report = run_script("engines.py", adapter, *options)
    alike = {"identical": 2, "of": 2, "apart": []}
    assert report["engines"] == {"transformers, merged checkpoint": alike, "PEFT LoRA without peft_be": alike}
    assert report["args"]["adapter"] == "a"  # and nothing of where it lies


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The output row of")
def test_engines_of_llama_cpp(run_script, tiny_dir, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from ..gguf_file import save_gguf

    adapter, file = save_adapter(str(tiny_dir), tmp_path / "a", 2), save_gguf(tiny_dir, tmp_path / "base.gguf")
    options = ("--model", tiny_dir, "--requests", 2, "--max-new-tokens", 4, "--gguf", file)
    report = run_script("engines.py", adapter, *options)["engines"]
    # As a token of the file, [BE] may be written by a random model, for which no row of the output table prevents it
    assert report["llama.cpp, LoRA"] == {"identical": 2, "of": 2, "apart": []}


def test_a_divergence_has_the_margin_of_the_reference(tiny_model):
    from engines import divergence, greedy

    (expected,) = greedy(tiny_model, [[1, 50, 60]], 4)
    assert divergence(tiny_model, [1, 50, 60], expected, expected) is None
    other = [*expected[:2], (expected[2] + 1) % 100, expected[3]]
    found = divergence(tiny_model, [1, 50, 60], expected, other)
    assert found["position"] == 2 and found["margin"] > 0


def time_to_kl(run_script, tiny_dir, *options):
    settings = ("--prompt-tokens", 40, "--held-out", 2, "--reference-steps", 3, "--reference-every", 2, "--steps", 4)
    return run_script("time_to_kl.py", "--model", tiny_dir, *settings, "--every", 2, *TINY, *options)


def test_time_to_kl_resumes(run_script, tiny_dir, capsys):
    first = time_to_kl(run_script, tiny_dir)
    assert [point["step"] for point in first["reference"]["curve"]] == [2, 3]
    assert [point["step"] for point in first["ours"]["curve"]] == [2, 4]
    curve = first["reference"]["curve"]
    assert curve[-1]["seconds"] <= first["reference"]["sum_of_steps_s"]
    assert first["ours"]["teacher_s"] < first["ours"]["curve"][0]["seconds"] < first["ours"]["curve"][1]["seconds"]
    assert first["ours"]["curve"][1]["seconds"] <= first["ours"]["total_s"]

    assert time_to_kl(run_script, tiny_dir, "--resume", "--steps", 2)["reference"] == first["reference"]
    assert "taken from" in capsys.readouterr().out
    assert time_to_kl(run_script, tiny_dir, "--resume", "--seed", 1)["reference"] != first["reference"]
    assert "taken from" not in capsys.readouterr().out


def test_time_to_kl_compares_the_first_that_is_as_good():
    from time_to_kl import compare

    reference = [{"seconds": 100.0, "kl": 0.30}, {"seconds": 200.0, "kl": 0.20}, {"seconds": 300.0, "kl": 0.05}]
    ours = [{"seconds": 5.0, "kl": 0.4}, {"seconds": 10.0, "kl": 0.2}, {"seconds": 20.0, "kl": 0.25}]
    rows = compare(reference, ours)
    assert [row["speedup"] for row in rows] == [10.0, 20.0, None]
    assert rows[2]["ours"] is None


def test_the_clock_stands_still_while_it_measures():
    from time_to_kl import StoppedClock

    held_out = SimpleNamespace(base=SimpleNamespace(device=torch.device("cpu")), kl=lambda row: time.sleep(0.3) or 1.0)
    model = SimpleNamespace(base_model=SimpleNamespace(get_rows=lambda name: None), active_adapter="default")
    clock = StoppedClock(held_out, every=2)
    for step in range(1, 6):
        time.sleep(0.01)
        clock.on_step_end(None, SimpleNamespace(global_step=step, max_steps=5), None, model=model)
    assert [point["step"] for point in clock.curve] == [2, 4, 5]
    assert 0.05 <= clock.seconds() < 0.3


def test_scaling(run_script, tiny_dir):
    options = ("--prompt-tokens", 40, "--rounds", 2, "--no-memory", *TINY)
    values = ("--prompt-values", 40, 60, "--rows-values", 1, 3, "--answer-values", 4, 8)
    report = run_script("scaling.py", "--model", tiny_dir, *options, *values, "--axes", "prompt", "rows", "answer")
    positions = {axis: [result["positions"] for result in results] for axis, results in report["axes"].items()}
    # A row of the batch is what the model sees: no part of P, each row of [BE], each token of the answer
    first = positions["prompt"][0]
    assert positions == {"prompt": [first, first], "rows": [first, first + 2 * 2], "answer": [first, first + 2 * 4]}
    for results in report["axes"].values():
        assert all(result["step_s"]["q1"] <= result["step_s"]["q3"] for result in results)


def test_scaling_makes_a_model_of_any_vocabulary(tiny_dir):
    from scaling import make_model

    args = SimpleNamespace(model=str(tiny_dir), vocab_size=70000, seed=1)
    model, tokenizer = make_model(args)
    assert model.get_output_embeddings().weight.shape == (70000, 32)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    own, _ = make_model(SimpleNamespace(model=str(tiny_dir), vocab_size=len(tokenizer), seed=1))
    assert own.get_input_embeddings().num_embeddings == len(tokenizer)


def test_profile_step(run_script, tiny_dir, capsys):
    report = run_script("profile_step.py", "--model", tiny_dir, "--prompt-tokens", 40, "--steps", 1, *TINY)
    table = capsys.readouterr().out
    for side, result in report["results"].items():
        assert f"part of {side}" in table
        assert sum(result["parts_s"].values()) == pytest.approx(result["step_s"])
        parts = dict(result["parts_s"])
        assert parts.pop("other") >= 0 and all(seconds > 0 for seconds in parts.values())
        groups = result["profiled"]
        assert sum(groups["seconds"].values()) == pytest.approx(groups["step_s"], rel=0.02)
        # Known operators only: what is left are views and the bookkeeping of autograd
        assert all(groups["seconds"][name] > 0 for name in ("matrix products", "attention", "over the vocabulary"))
    assert {"loss head", "student", "backward", "optimizer"} <= report["results"]["ours"]["parts_s"].keys()


@pytest.mark.parametrize(
    "name, shapes, group",
    [
        ("aten::mm", [[4, 8], [8, 100]], "matrix products"),
        ("aten::addmm", [[8], [4, 8], [8, 8]], "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", [], "attention"),
        ("aten::_log_softmax", [[4, 100]], "over the vocabulary"),
        ("aten::mul_", [[4, 100], []], "over the vocabulary"),
        ("aten::exp_", [[4, 100]], "over the vocabulary"),
        ("aten::silu_backward", [[4, 8], [4, 8]], "other element-wise"),
        ("aten::mul", [[4, 8], []], "other element-wise"),
        ("aten::copy_", [[4, 100], [4, 100]], "copies"),
        ("aten::cat", [[]], "copies"),
        ("aten::transpose", [[4, 8], [], []], "the rest"),
    ],
)
def test_groups_of_operators(name, shapes, group):
    from profile_step import group_of

    assert group_of(name, shapes, vocab_size=100) == group


def test_profile_finds_what_a_step_does():
    from profile_step import profile_groups

    matrix, logits = torch.randn(400, 400), torch.randn(2000, 1000)
    cpu = torch.device("cpu")
    products = profile_groups(lambda: matrix @ matrix @ matrix, 3, 1000, cpu)["seconds"]
    assert max(products, key=products.get) == "matrix products"
    softmax = profile_groups(lambda: logits.log_softmax(-1).exp_().sum(), 3, 1000, cpu)["seconds"]
    assert max(softmax, key=softmax.get) == "over the vocabulary"


def test_parts_do_not_count_twice(monkeypatch):
    from profile_step import Parts

    now = 0.0
    monkeypatch.setattr("profile_step.time.perf_counter", lambda: now)

    class Job:
        def outer(self):
            nonlocal now
            now += 5
            self.inner()

        def inner(self):
            nonlocal now
            now += 10

    job, parts = Job(), Parts(torch.device("cpu"))
    parts.watch(job, "inner", "in")
    parts.watch(job, "outer", "out")
    job.outer()
    assert parts.seconds == {"in": 10, "out": 5}


def test_peak_counts_from_the_model_on(tiny_model):
    from common import peak, start_of_peak

    cpu = torch.device("cpu")
    before = start_of_peak(tiny_model)
    tensor = torch.ones(50_000_000)
    assert 190e6 < peak(cpu) - before < 220e6
    del tensor
    assert peak(cpu) - before > 190e6  # a peak stays
    assert start_of_peak(tiny_model) - before < 20e6  # until the next measurement


@pytest.mark.slow
def test_peak_memory_in_processes_of_their_own(run_script, tiny_dir):
    """Next to no layers, so that what the step holds for the vocabulary is nearly all of the memory."""
    options = ("--prompt-tokens", 40, "--no-times", "--queries", 8, "--answer-length", 64, "--batch-size", 8)
    values = ("--axes", "vocab", "--vocab-values", 131072)
    (result,) = run_script("scaling.py", "--model", tiny_dir, *options, *values)["axes"]["vocab"]
    # Peaks of resident memory vary by hundreds of MB from run to run: only the large difference is asked for
    assert result["peak_bytes"].keys() == {"ours", "ours, checkpointing", "plain", "plain, answers"}
    assert result["peak_bytes"]["ours"] < 0.5 * min(result["peak_bytes"][name] for name in ("plain", "plain, answers"))


@pytest.mark.slow
def test_training_memory(run_script, tiny_dir):
    settings = ("--prompt-tokens", 60, "--rounds", 1, *TINY)
    (result,) = run_script("training.py", "--model", tiny_dir, *settings, "--memory")["results"]
    assert set(result["peak_bytes"]) == {"reference", "cartridge", "ours"}
    assert all(1e6 < size < 1e9 for size in result["peak_bytes"].values())


def test_precision(run_script, tiny_tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    # On some CPUs, bitsandbytes packs 4-bit layers in blocks of 64
    base, _ = load_model(save_tiny_llama(tmp_path / "model", tiny_tokenizer, width=64))
    model = get_peft_model(base, BETokenConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "prompt.txt").write_text("You are a lighthouse keeper. You never leave the island.")
    (tmp_path / "queries.txt").write_text("".join(f"What did you see on day {i}?\n" for i in range(6)))
    files = ("--prompt", tmp_path / "prompt.txt", "--queries", tmp_path / "queries.txt")
    training = ("--train-steps", 2, "--train-queries", tmp_path / "queries.txt")
    report = run_script(
        "precision.py", tmp_path / "adapter", *files, *training, "--max-queries", 2, "--answer-length", 4
    )
    results = report["results"]
    assert list(results) == ["float32", "nf4", "int8", "q8_0", "q4_0", "bfloat16", "float16"]
    assert results["float32"]["drift"] == 0 < results["q8_0"]["drift"] < results["q4_0"]["drift"]
    for precision, result in results.items():
        assert list(result["rows"])[:3] == ["the adapter", "2 steps on float32", "2 steps on nf4"]
        assert len(result["rows"]) == (5 if precision == "float32" else 3)
        for row in result["rows"].values():
            assert row["kl_gap_closed"] == pytest.approx(1 - row["kl"] / result["kl_no_prompt"])

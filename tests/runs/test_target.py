"""The smallest k that reaches a target: which trainings the search makes, and what a run makes of them."""

import json
import math
import os
import signal
import warnings
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from peft_be import BEDistillConfig, BETokenConfig, CompressConfig, PromptRenderer, compress_prompt
from peft_be.adapters.create import add_adapter
from peft_be.adapters.folder import read_report
from peft_be.data import split_queries
from peft_be.evaluation.fidelity import FidelityScorer
from peft_be.figures import search_sentences
from peft_be.runs.target import (
    FIRST_STEPS,
    MAX_SHARE,
    MOST_ROWS,
    PROBE_SHARE,
    Trained,
    candidates,
    chosen,
    expected,
    is_too_late,
    next_training,
    starts_from,
)
from peft_be.training.growing_trainer import GrowingTrainer

from ..stages import PROMPT
from ..tiny import save_tiny_llama


KS = candidates(1, 1000)
QUERIES = [f"What did you see on day {i}?" for i in range(30)]
FAST = {"max_steps": 40, "eval_steps": 10, "save_steps": 10, "logging_steps": 2, "max_answer_length": 6}


# Which training comes next, with curves that are made up


STEPS = 600


def search(gap, target, ks=KS, told=lambda k, probe: probe, may_probe=lambda done: True):
    """
    The trainings of a search where all steps close `gap(k)`, and a probe what lets one expect that, unless `told` changes it.
    """
    done = []
    while (training := next_training(done, ks, target, STEPS, may_probe(done))) is not None:
        k, full = training
        assert training not in [(trained.k, trained.full) for trained in done]
        earlier = starts_from(done, k)
        steps = STEPS if full else STEPS // 10
        taught = steps + (earlier.taught if earlier else 0)
        power = math.log(taught - FIRST_STEPS + STEPS) / math.log(taught - FIRST_STEPS)
        probe = told(k, 1 - (1 - gap(k)) ** (1 / power))
        share = gap(k) if full else probe
        done.append(Trained(k, share, share, full, steps, taught))
    return done


def made(k, gap, full):
    return Trained(k, gap, gap, full, STEPS, STEPS)


def log_curve(first, doubling):
    """A gap that grows by `doubling` whenever k is doubled."""
    return lambda k: min(0.99, first + doubling * KS.index(k))


def test_the_candidates():
    assert candidates(1, 1000) == [1, 2, 4, 8, 16, 32, 64] and KS[-1] == MOST_ROWS
    assert candidates(3, 1000) == [3, 6, 12, 24, 48]
    # As many rows as P has tokens would save nothing
    assert candidates(1, 32) == [1, 2, 4, 8, 16] and candidates(1, 33)[-1] == 32
    assert candidates(1, 1) == [1] and candidates(64, 9) == [64]


@pytest.mark.parametrize("wanted", KS)
def test_the_smallest_that_reaches_it_is_found(wanted):
    curve = log_curve(0.3, 0.09)
    done = search(curve, curve(wanted) - 0.001)
    assert chosen(done, curve(wanted) - 0.001).k == wanted
    full = [trained for trained in done if trained.full]
    assert len(full) == 1 and done[-1] is full[0]
    # Five probes are the most, so that the search costs less than it may
    assert (len(done) - 1) * PROBE_SHARE <= MAX_SHARE
    assert len({(trained.k, trained.full) for trained in done}) == len(done)


def test_what_is_far_off_is_jumped_over():
    done = search(log_curve(0.3, 0.09), 0.65)
    trainings = [(trained.k, trained.full) for trained in done]
    assert trainings == [(1, False), (4, False), (16, False), (8, False), (16, True)]


@pytest.mark.parametrize(
    "gap, steps, more, after", [(0.561, 125, 475, 0.683), (0.33, 271, 329, 0.391), (0.664, 200, 400, 0.734)]
)
def test_what_probes_let_one_expect(gap, steps, more, after):
    """Trainings of fewer and of 600 steps in research/log.md."""
    assert expected(Trained(1, gap, gap, False, steps, steps), more) == pytest.approx(after, abs=0.03)
    assert expected(Trained(1, -0.2, -0.2, False, 10, 10), 90) == -0.2  # which tells nothing
    assert expected(Trained(1, 0.3, 0.3, False, 1, 1), 9) == 0.3


@pytest.mark.parametrize("share", [0.85, 1.0, 1.15])
@pytest.mark.parametrize("target", [0.4, 0.5, 0.6, 0.7])
def test_within_one_doubling_where_probes_tell_more_or_less_than_expected(share, target):
    curve = log_curve(0.3, 0.09)
    wanted = next(k for k in KS if curve(k) >= target)
    found = chosen(search(curve, target, told=lambda k, probe: share * probe), target)
    assert found.share >= target and found.k <= 2 * wanted


def test_a_miss_is_learned_from():
    """Probes that promise more than all steps keep: the next k is the next one that has enough."""
    curve = log_curve(0.3, 0.09)
    done = search(curve, 0.6, told=lambda k, probe: 1.25 * probe)
    full = [trained.k for trained in done if trained.full]
    assert full[-1] == 16 == chosen(done, 0.6).k and len(full) <= 3 and full == sorted(full)


def test_a_noisy_curve():
    noise = {1: 0.02, 2: -0.03, 4: 0.02, 8: -0.02, 16: 0.03, 32: -0.03, 64: 0.0}
    curve = log_curve(0.3, 0.06)
    for target in (0.35, 0.45, 0.55, 0.6):
        done = search(curve, target, told=lambda k, probe: probe + noise[k])
        assert chosen(done, target).share >= target


def test_a_flat_curve_keeps_the_fewest_rows():
    done = search(lambda k: 0.5 + 0.0001 * KS.index(k), 0.9)
    assert [(trained.k, trained.full) for trained in done] == [
        (1, False),
        (4, False),
        (16, False),
        (64, False),
        (1, True),
    ]
    assert chosen(done, 0.9).k == 1


def test_a_curve_that_falls():
    done = search(lambda k: 0.5 - 0.05 * KS.index(k), 0.9)
    assert chosen(done, 0.9).k == 1


def test_a_target_that_nothing_reaches():
    done = search(log_curve(0.3, 0.05), 0.95)
    assert [(trained.k, trained.full) for trained in done][-1] == (64, True)
    assert chosen(done, 0.95).k == 64 and len(done) == 5


def test_the_best_is_kept_where_more_rows_end_worse():
    done = [made(1, 0.3, False), made(4, 0.5, True), made(8, 0.45, True)]
    assert chosen(done, 0.9).k == 4 and chosen(done, 0.4).k == 4 and chosen(done, 0.2).k == 4


def test_a_single_candidate_needs_no_probe():
    assert [(trained.k, trained.full) for trained in search(lambda k: 0.3, 0.9, ks=[64])] == [(64, True)]


def test_without_time_for_probes_the_best_so_far_is_trained():
    done = search(log_curve(0.3, 0.09), 0.6, may_probe=lambda done: len(done) < 2)
    assert [(trained.k, trained.full) for trained in done[:3]] == [(1, False), (4, False), (4, True)]
    # One probe is made in any case
    done = search(log_curve(0.3, 0.09), 0.6, may_probe=lambda done: False)
    assert [(trained.k, trained.full) for trained in done] == [(1, False), (1, True)]


def test_one_training_is_made_in_full_however_late_it_is():
    probes = [replace(made(1, 0.3, False), seconds=3.0), replace(made(4, 0.4, False), seconds=3.0)]
    assert not is_too_late([], 0.0) and not is_too_late(probes, 0.0)
    done = [*probes, replace(made(4, 0.5, True), seconds=20.0)]
    assert [is_too_late(done, left) for left in (0.0, 19.0, 21.0, math.inf)] == [True, True, False, False]


def test_rows_grow_from_the_most_that_are_trained():
    done = [made(1, 0.3, False), made(4, 0.5, False), made(2, 0.4, False), made(4, 0.6, True)]
    assert starts_from([], 1) is None
    assert starts_from(done[:2], 2) is done[0] and starts_from(done[:3], 4) is done[1]
    assert starts_from(done, 8) is done[3] and starts_from(done, 2) is done[2]


# Growing


@pytest.fixture
def model(tiny_model, monkeypatch, tmp_path):
    """A random model whose answers depend on the prompt. It learns in fewer steps than a real one needs."""
    monkeypatch.setattr("peft_be.runs.search.FEWEST_STEPS", 10)
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    for parameter in tiny_model.parameters():
        parameter.data.mul_(3)
    return tiny_model


def growing(model, tokenizer, folder, k, **options):
    args = BEDistillConfig(str(folder / str(k)), **FAST)
    queries = {"train_dataset": QUERIES[:20], "eval_dataset": QUERIES[20:], "processing_class": tokenizer}
    return GrowingTrainer(add_adapter(model, tokenizer, k), args, PROMPT, **queries, **options)


def test_trained_rows_come_first_and_the_others_start_anew(model, tiny_tokenizer, tmp_path):
    trained = torch.randn(2, 32)
    fresh = growing(model, tiny_tokenizer, tmp_path, 4)
    start, rms = fresh.model.base_model.get_rows("default"), fresh._start_rms
    fresh.model.unload()
    asked = []
    grown = growing(
        model, tiny_tokenizer, tmp_path, 4, rows=trained, teaching=fresh.teaching, on_teacher_progress=asked.append
    )
    rows = grown.model.base_model.get_rows("default")
    assert torch.equal(rows[:2], trained) and torch.equal(rows[2:], start[2:])
    assert grown._start_rms == rms  # steps do not grow with the rows
    assert grown.teaching is fresh.teaching and not asked and len(grown.teaching.hidden) == 30
    assert grown.train_dataset[0] == fresh.train_dataset[0]
    more = growing(grown.model.unload(), tiny_tokenizer, tmp_path, 8, rows=rows, teaching=fresh.teaching)
    ids = more.model.peft_config["default"].be_token_ids
    for row, before in zip(more.train_dataset, fresh.train_dataset):
        assert set(ids) <= set(row["input_ids"]) and row["length"] == before["length"] + 4
        assert row["teacher"] == before["teacher"]


def test_short_trainings_read_other_queries_first(model, tiny_tokenizer, tmp_path):
    first = growing(model, tiny_tokenizer, tmp_path, 1)
    first.model.unload()
    later = growing(model, tiny_tokenizer, tmp_path, 1, teaching=first.teaching, order=1)
    orders = [list(trainer._get_train_sampler()) for trainer in (first, later)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


# A run


class Run:
    def __init__(self, folder, model, tokenizer):
        self.folder, self.args = folder, {"model": model, "tokenizer": tokenizer, **FAST}

    def __call__(self, name, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = compress_prompt(PROMPT, QUERIES, self.folder / name, **{"target": 0.99, **self.args, **options})
        result.model.unload()
        return result

    def interrupted(self, name, what, at, how, **options):
        def stop(stage, done, total, values):
            if stage == what and done == at:
                how()

        with pytest.raises((RuntimeError, KeyboardInterrupt)):
            self(name, on_progress=stop, **options)

    def rows(self, name):
        (rows,) = load_file(self.folder / name / "adapter_model.safetensors").values()
        return rows


@pytest.fixture
def run(model, tiny_tokenizer, tmp_path):
    return Run(tmp_path, model, tiny_tokenizer)


def told(report):
    return [(entry["k"], entry["full"]) for entry in report["search"]["curve"]]


def without_times(log):
    return [{k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k} for entry in log]


def test_a_run_with_a_target(run, model, tiny_tokenizer):
    teacher, stages = [], []

    def follow(what, done, total, values):
        (teacher if "teacher" in what else stages).append((what, done, total))

    result = run("out", on_progress=follow)
    record = json.loads((run.folder / "out" / "training.json").read_text())
    search, best = record["search"], record["best"]
    assert record["search"] == result.report["search"] and search["target"] == 0.99
    prompt_tokens = len(PromptRenderer(tiny_tokenizer, PROMPT).prompt_ids)
    trainings = told(record)
    assert trainings[0] == (1, False) and trainings[-1] == (search["k"], True) and len(trainings) > 2
    assert all(k < prompt_tokens for k, _ in trainings)
    for entry in search["curve"]:
        assert entry["steps"] == (40 if entry["full"] else 10)
    # Each training is told as one, and the teacher works once
    assert list(dict.fromkeys(what for what, _, _ in stages)) == [
        f"{'stage 2' if full else 'probe'}, {k} row{'' if k == 1 else 's'}" for k, full in trainings
    ]
    assert [done for what, done, _ in teacher].count(27) == 1
    assert not (run.folder / "out" / "training").exists()
    # The rows are those of the last training, and say where they are from
    assert search["curve"][-1]["kl_gap_closed"] == best["kl_gap_closed"]
    loaded = PeftModel.from_pretrained(model, run.folder / "out")
    config = loaded.peft_config["default"]
    assert len(run.rows("out")) == config.num_be_tokens == search["k"]
    assert config.provenance["training"]["validation_kl"] == pytest.approx(best["kl"])
    queries, renderer = split_queries(QUERIES).validation, PromptRenderer.for_adapter(config, tiny_tokenizer, PROMPT)
    base = loaded.get_base_model()
    scorer = FidelityScorer(base, tiny_tokenizer, [renderer.full(query) for query in queries], 6)
    assert scorer.kl([renderer.be(query) for query in queries]) == pytest.approx(best["kl"], rel=1e-3)


def test_a_share_of_the_answers_as_the_target(run):
    report = run("out", target=0.3, target_metric="same_answers", max_answer_length=2).report
    search = report["search"]
    full = {entry["k"]: entry for entry in search["curve"] if entry["full"]}
    chosen = full.pop(search["k"])
    assert search["metric"] == "same_answers" and search["reached"] == (chosen["same_answers"] >= 0.3)
    assert report["best"]["same_answers"] == chosen["same_answers"]
    assert all(entry["same_answers"] < 0.3 for entry in full.values())
    assert read_report(run.folder / "out") == json.loads((run.folder / "out" / "training.json").read_text())
    assert search_sentences(search).startswith("Same answers after 10 steps: ")


def after_full(shares, probes, noise=1 / 48):
    """The k that are trained in full where probes have these shares, and all steps `shares`."""
    ks, done, full = sorted(probes), [], []
    while (step := next_training(done, ks, 0.95, 600, probes_tell=False, noise=noise)) is not None:
        k, is_full = step
        done.append(Trained(k, shares[k] if is_full else probes[k], k / 100, is_full, 600 if is_full else 60, 600))
        full += [k] * is_full
    return full


def test_probes_without_the_same_answers_end_no_search():
    shares = {1: 0.3, 2: 0.5, 4: 0.7, 8: 0.85, 16: 0.96, 32: 0.98, 64: 0.98}
    # Not even one of 48 is the same after a probe: the gap says which k is the nearest
    assert after_full(shares, dict.fromkeys(shares, 0.0)) == [64]
    # More rows are tried as long as they bring more
    assert after_full(shares, {**dict.fromkeys(shares, 0.0), 4: 1 / 48}) == [4, 8, 16]
    assert after_full({**shares, 8: 0.71}, {**dict.fromkeys(shares, 0.0), 4: 1 / 48}) == [4, 8]


def test_kept_text_stays_with_every_number_of_rows(run, tiny_tokenizer):
    kept = PROMPT.partition(".")[0]
    result = run("out", keep=[kept])
    assert result.report["search"]["k"] > 1
    configs = [BETokenConfig.from_pretrained(run.folder / "out"), result.model.peft_config["default"]]
    assert [config.kept_text for config in configs] == [kept, kept]
    # With the rows, it is shorter than the prompt
    renderer = PromptRenderer(tiny_tokenizer, PROMPT, kept_text=kept)
    assert all(k + len(renderer.kept_ids) < len(renderer.prompt_ids) for k, _ in told(result.report))


def test_a_target_that_is_reached_at_once(run):
    gap = run("far").report["search"]["curve"][-1]["kl_gap_closed"]
    report = run("near", target=0.01, num_be_tokens=2).report
    assert gap > 0.05 and report["search"]["reached"]
    assert told(report) == [(2, False), (2, True)] and len(run.rows("near")) == 2


def test_what_is_out_of_reach_is_said(run):
    with pytest.warns(
        UserWarning, match=r"The target of 0.99 is not reached. What came nearest: \d+ rows?, gap closed 0"
    ):
        compress_prompt(PROMPT, QUERIES, run.folder / "out", target=0.99, **run.args).model.unload()


def fail():
    raise RuntimeError("the power is gone")


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number, at, how", [(0, 2, fail), (1, 4, ctrl_c), (-1, 25, fail), (-1, 33, ctrl_c)])
def test_a_search_that_is_interrupted_goes_on_where_it_was(run, number, at, how):
    alone = run("alone").report
    trainings = told(alone)
    k, full = trainings[number]
    what = f"{'stage 2' if full else 'probe'}, {k} row{'' if k == 1 else 's'}"
    run.interrupted("old", what, at, how)
    seen = []
    again = run("old", resume=True, on_progress=lambda what, *_: seen.append(what)).report
    # What was finished is not trained again
    stages = [stage for stage in dict.fromkeys(seen) if "teacher" not in stage]
    assert stages[0] == what and len(stages) == len(trainings[number:])
    assert (again["search"], again["best"], again["steps"]) == (alone["search"], alone["best"], alone["steps"])
    assert torch.equal(run.rows("old"), run.rows("alone"))
    assert without_times(again["log"]) == without_times(alone["log"]) or how is ctrl_c  # the checkpoint parts an entry


@pytest.mark.parametrize("what", ["rows", "record"])
def test_a_probe_that_is_damaged_is_trained_again(run, what):
    alone = run("alone").report
    k, _ = told(alone)[1]
    run.interrupted("old", f"stage 2, {alone['search']['k']} row{'' if alone['search']['k'] == 1 else 's'}", 5, fail)
    work = run.folder / "old" / "training"
    if what == "rows":
        path = work / f"k{k}-probe" / "rows" / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:50])
    else:  # as another version may have left it
        first, second, *others = (work / "search.jsonl").read_text().splitlines(keepends=True)
        (work / "search.jsonl").write_text("".join([first, second.replace('"taught"', '"learned"'), *others]))
    again = run("old", resume=True).report
    assert again["search"] == alone["search"] and torch.equal(run.rows("old"), run.rows("alone"))
    assert read_report(run.folder / "old")["seconds"] is None  # nobody measured the whole run


def test_a_finished_search_is_returned_as_it_is(run):
    first = run("out")
    again = run("out", resume=True)
    assert again.report == first.report
    assert again.model.peft_config["default"].num_be_tokens == first.report["search"]["k"]
    with pytest.raises(ValueError, match=r"another target \(0.99, now 0.5\)"):
        run("out", resume=True, target=0.5)


def test_the_time_is_for_the_whole_search(run):
    report = run("out", max_steps=100_000, max_minutes=0.2).report
    fitting = report["settings"]["fitting_steps"]
    probes = [entry["steps"] for entry in report["search"]["curve"] if not entry["full"]]
    steps = min(fitting["probes"], max(10, round(PROBE_SHARE * fitting["probes"])))
    assert probes == [steps] * len(probes)
    assert report["steps"] <= fitting[str(report["search"]["k"])] < 100_000


def test_a_search_with_reconstruction(run, tiny_tokenizer, tmp_path):
    from peft_be import pretrain_ae

    texts = [f"{query} The sea is wide. " * 12 for query in QUERIES]
    short = {"max_steps": 2, "max_passage_length": 64, "num_validation": 3}
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    pretrain_ae(texts, tmp_path / "ae", model=base, **short)
    run.args |= {"model": base, "tokenizer": None}
    report = run("out", kd_weight=0.9, ae=tmp_path / "ae").report
    assert len(run.rows("out")) == report["search"]["k"]
    assert any("reconstruction_loss" in entry for entry in report["log"])


# What cannot be


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"target": 0}, "target must be above 0"),
        ({"target": 1.0}, "target must be above 0 and below 1"),
        ({"target": "0.9"}, "target must be a number"),
        ({"target": 0.9, "num_be_tokens": 65}, "starts with num_be_tokens rows and ends with 64"),
        ({"target": 0.9, "kd_weight": 0.0}, "A target is a share of what the distillation brings"),
        ({"target": 0.9, "reconstruction_steps": 3}, "A target is a share of what the distillation brings"),
        ({"target": 0.9, "target_metric": "kl"}, "target_metric"),
        ({"target_metric": "same_answers"}, "give a target, too"),
    ],
)
def test_targets_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        CompressConfig(**settings)


def test_a_prompt_that_changes_nothing_has_no_target(run, model):
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    with pytest.raises(ValueError, match="The prompt changes nothing"):
        run("out")
    assert not (run.folder / "out").exists()
    assert not hasattr(model.get_input_embeddings(), "be_token_embedding")  # it can be used again

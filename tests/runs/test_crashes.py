"""Runs that are cut off at bad moments, in damaged folders, on full disks, or that two processes want: nothing is lost."""

import copy
import json
import os
import resource
import shutil
import signal

import pytest
from safetensors.torch import load_file, save_file

from peft_be import BEDistillConfig, compress_prompt, compress_prompts, pretrain_ae
from peft_be.files import append_record
from peft_be.runs.folder import RunFolder
from peft_be.runs.manifest import PromptJob

from ..crashes.kills import watch_files
from ..stages import PROMPT
from .folders import OFTEN, OVERSHOOTING, content, finished


QUERIES = [f"What was on day {i}?" for i in range(12)]


class Job:
    """A compression of a second, and what it leaves when it is left alone."""

    def __init__(self, folder, model, tokenizer):
        self.folder = folder
        self.args = {"model": model, "tokenizer": tokenizer, "max_steps": 9, **OFTEN, "on_progress": lambda *_: None}

    def run(self, name, **options):
        result = compress_prompt(PROMPT, QUERIES, self.folder / name, **{**self.args, **options})
        result.model.unload()
        return result

    def interrupted(self, name, at=6, **options):
        def fail(stage, done, total, values):
            if stage == "stage 2" and done == at:
                raise RuntimeError("the power is gone")

        with pytest.raises(RuntimeError, match="power"):
            self.run(name, on_progress=fail, **options)
        return self.folder / name

    def same(self, left, right):
        rows = [load_file(self.folder / name / "adapter_model.safetensors") for name in (left, right)]
        reports = [json.loads((self.folder / name / "training.json").read_text()) for name in (left, right)]
        logs = [
            [{k: v for k, v in e.items() if "runtime" not in k and "per_second" not in k} for e in report["log"]]
            for report in reports
        ]
        assert all(tensor.equal(rows[1][name]) for name, tensor in rows[0].items())
        assert logs[0] == logs[1] and reports[0].get("best") == reports[1].get("best")
        assert content(self.folder / left) == content(self.folder / right)


@pytest.fixture
def job(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    return Job(tmp_path, tiny_model, tiny_tokenizer)


# The folder


def killed(folder, at, work):
    """Whether a process that does `work()` was killed right before its file operation number `at`."""
    pid = os.fork()
    if pid == 0:
        watch_files(folder, at, folder.parent / "count")
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_overwriting_loses_no_finished_run_whenever_it_is_killed(tmp_path):
    """Before each of its file operations, and then once more while that is mended."""

    def replace():
        with RunFolder(folder, {"seed": 1}, overwrite=True) as run:
            append_record(run.work / "cells.jsonl", {"done": 1})
            (folder / "rows").write_text("second")
            run.finish({})

    def fail():
        with pytest.raises(OSError, match="no model"), RunFolder(folder, {"seed": 1}, overwrite=True):
            raise OSError("no model")

    for at in range(1, 100):
        for again in (None, at // 2 + 1):
            folder = finished(tmp_path / f"{at}-{again}")
            more = killed(folder, at, replace)
            # The second one is finished as soon as its result is there; that of the first is there until it is moved
            rows = folder / "rows"
            is_second = (folder / "training.json").exists() and rows.exists() and rows.read_text() == "second"
            last = "second" if is_second else "first"
            if again is not None:
                killed(folder, again, fail)
            fail()
            # What a run that failed at once leaves is what was finished last, as a whole
            assert content(folder) == ["rows", "training.json"], (at, again)
            assert (folder / "rows").read_text() == last, (at, again)
            replace()
            assert content(folder) == ["rows", "training.json"] and (folder / "rows").read_text() == "second"
        if not more:
            break
    assert 10 < at < 99


def test_a_run_that_was_killed_at_its_first_file_begins_again(tmp_path):
    (tmp_path / "out" / "training").mkdir(parents=True)
    (tmp_path / "out" / "training" / "settings.part").write_text("{")
    with RunFolder(tmp_path / "out", {}) as run:
        run.finish({})
    assert content(tmp_path / "out") == ["training.json"]


def test_resuming_again_and_again_ends_well(job):
    with pytest.warns(UserWarning, match="no unfinished run"):
        first = job.run("out", resume=True)
    rows = load_file(job.folder / "out" / "adapter_model.safetensors")
    again = job.run("out", resume=True)
    assert again.report == first.report
    assert again.model.peft_config["default"].provenance == first.model.peft_config["default"].provenance
    assert all(
        tensor.equal(rows[name])
        for name, tensor in load_file(job.folder / "out" / "adapter_model.safetensors").items()
    )
    with pytest.raises(ValueError, match=r"another max steps \(9, now 7\)"):
        job.run("out", resume=True, max_steps=7)


def test_two_processes_in_one_folder(tmp_path):
    with RunFolder(tmp_path / "out", {}) as run:
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(FileExistsError, match="Another process"):
                RunFolder(tmp_path / "out", {}, **options)
        assert (run.work / "settings.json").is_file()
        run.finish({})
    assert content(tmp_path / "out") == ["training.json"]


def test_the_lock_of_a_process_that_was_killed_does_not_count(tmp_path):
    pid = os.fork()
    if pid == 0:
        with RunFolder(tmp_path / "out", {}):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (tmp_path / "out" / ".lock").exists()
    with RunFolder(tmp_path / "out", {}, resume=True) as run:
        run.finish({})
    assert content(tmp_path / "out") == ["training.json"]


# Settings


def change_settings(folder, change):
    path = folder / "training" / "settings.json"
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def test_a_run_survives_an_update_that_adds_settings(job):
    job.run("alone")
    folder = job.interrupted("old")

    def older(settings):
        for name in set(settings) - {"prompt", "queries", "model", "seed", "max_steps", *OFTEN}:
            del settings[name]

    change_settings(folder, older)
    job.run("old", resume=True)
    job.same("alone", "old")


def test_a_run_survives_an_update_that_changes_a_default(job, monkeypatch):
    job.run("alone")
    job.interrupted("old")
    monkeypatch.setattr(BEDistillConfig.__dataclass_fields__["temperature"], "default", 4.0)
    job.run("old", resume=True)
    job.same("alone", "old")


def test_a_setting_that_is_newer_and_not_the_default_is_another_one(job):
    folder = job.interrupted("old")
    change_settings(folder, lambda settings: settings.pop("num_be_tokens"))
    with pytest.raises(ValueError, match=r"another num be tokens \(1, now 2\)"):
        job.run("old", resume=True, num_be_tokens=2)


def test_a_setting_that_is_gone_is_named(job):
    folder = job.interrupted("old")
    change_settings(folder, lambda settings: settings.update(magic=3))
    with pytest.raises(ValueError, match="magic=3"):
        job.run("old", resume=True)
    assert any(folder.glob("training/stage2/checkpoint-*"))


@pytest.mark.parametrize("text", ["", "[]", '{"seed": 4', "\0\0\0\0"])
def test_a_damaged_record_of_the_settings(job, text):
    folder = job.interrupted("old")
    (folder / "training" / "settings.json").write_text(text)
    with pytest.raises(ValueError, match="settings.json.*--overwrite"):
        job.run("old", resume=True)
    assert any(folder.glob("training/stage2/checkpoint-*"))


def test_a_run_is_not_resumed_on_another_base(job):
    job.interrupted("old")
    job.args["model"].model.layers[0].mlp.up_proj.weight.data.mul_(1.5)
    with pytest.raises(ValueError, match="another base model"):
        job.run("old", resume=True)


# Checkpoints


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil(path):
    rows = load_file(path)
    save_file({name: tensor * float("nan") for name, tensor in rows.items()}, path)


@pytest.mark.parametrize(
    "name, damage",
    [
        ("adapter_model.safetensors", truncate),
        ("adapter_model.safetensors", spoil),
        ("adapter_model.safetensors", os.remove),
        ("optimizer.pt", truncate),
        ("optimizer.pt", os.remove),
        ("scheduler.pt", os.remove),
        ("rng_state.pth", lambda path: path.write_bytes(b"")),
        ("trainer_state.json", lambda path: path.write_text("[]")),
    ],
)
def test_damaged_checkpoints_are_left_out(job, name, damage):
    job.run("alone")
    folder = job.interrupted("old")
    damage(folder / "training" / "stage2" / "checkpoint-4" / name)
    with pytest.warns(UserWarning, match="checkpoint-4' is damaged"):
        job.run("old", resume=True)
    job.same("alone", "old")


def test_the_best_rows_are_found_where_the_run_is_now(job, monkeypatch):
    """Their folder is recorded as it was called then; from elsewhere it would not be found, and the last rows be taken."""
    last = job.run("alone", **OVERSHOOTING).report["steps"]
    (job.folder / "there").mkdir()
    monkeypatch.chdir(job.folder / "there")
    home, job.folder = job.folder, job.folder.relative_to(job.folder)
    job.interrupted("old", at=last - 3, **OVERSHOOTING)
    job.folder = home
    shutil.move(home / "there" / "old", home / "old")
    monkeypatch.chdir(home)
    job.run("old", resume=True, **OVERSHOOTING)
    job.same("alone", "old")


@pytest.mark.parametrize("options", [{"max_steps": 7}, {**OVERSHOOTING, "eval_steps": 1, "save_steps": 1}])
def test_a_run_whose_training_was_over_is_not_trained_further(job, options, monkeypatch):
    alone = job.run("alone", **options)
    assert alone.report["steps"] == 7 or alone.report["steps"] < OVERSHOOTING["max_steps"]

    def fail(*_):
        raise RuntimeError("the power is gone")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        patch.setattr(RunFolder, "finish", fail)
        job.run("old", **options)
    job.run("old", resume=True, **options)
    job.same("alone", "old")


def test_the_last_step_of_stage_0_is_made_once(job, monkeypatch):
    texts = [f"{query} The sea is wide. " * 12 for query in QUERIES]
    args = {name: job.args[name] for name in ("tokenizer", "on_progress")}
    args |= {"max_steps": 4, "max_passage_length": 64, "num_validation": 3}

    def fail(*_):
        raise RuntimeError("the power is gone")

    base = job.args["model"]
    pretrain_ae(texts, job.folder / "alone", model=copy.deepcopy(base), **args)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        patch.setattr(RunFolder, "finish", fail)
        pretrain_ae(texts, job.folder / "old", model=copy.deepcopy(base), **args)
    pretrain_ae(texts, job.folder / "old", model=base, resume=True, **args)
    job.same("alone", "old")


def test_a_training_leaves_the_base_as_it_was(job):
    """Or the next one in the same process would have another teacher than after a kill."""
    base = job.args["model"]
    base.config.eos_token_id = base.generation_config.eos_token_id = 5  # not the tokenizer's
    before = base.config.to_dict(), base.generation_config.to_dict()
    job.run("out")
    assert (base.config.to_dict(), base.generation_config.to_dict()) == before


def test_prompts_that_stopped_early_are_there_after_a_resume(job):
    """One has stopped, another has not: the rows of both are found."""
    jobs = [PromptJob("a", PROMPT, QUERIES), PromptJob("b", "You sell ice cream, and talk of nothing else.", QUERIES)]

    def run(name, **options):
        results = compress_prompts(jobs, job.folder / name, **{**job.args, **OVERSHOOTING, **options})
        assert [result.error for result in results] == [None, None]
        return [result.report for result in results]

    alone = run("alone")
    first, last = sorted(report["steps"] for report in alone)
    assert first < last

    def fail(stage, done, total, values):
        if "stage 2" in stage and done == last - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("old", on_progress=fail)
    again = run("old", resume=True)
    assert [report["steps"] for report in again] == [report["steps"] for report in alone]
    for name in ("a", "b"):
        rows = [load_file(job.folder / run / name / "adapter_model.safetensors") for run in ("alone", "old")]
        assert all(tensor.equal(rows[1][key]) for key, tensor in rows[0].items())


# The disk


@pytest.fixture
def small_files():
    """A function that lets files grow to some bytes only, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [300, 1_800, 4_000])
def test_a_full_disk_is_said_and_the_run_goes_on_later(job, small_files, size):
    job.run("alone")  # and the teacher's answers are there
    small_files(size)
    with pytest.raises(OSError, match="cannot (be written|write its files)"):
        job.run("old")
    small_files(resource.RLIM_INFINITY)
    job.run("old", resume=True)
    job.same("alone", "old")


def test_a_full_disk_under_the_cache(job, small_files):
    small_files(2_000)
    with pytest.raises(OSError, match="teacher's cache .* cannot be written .*PEFT_BE_CACHE"):
        job.run("old")
    small_files(resource.RLIM_INFINITY)
    assert not (job.folder / "old").exists() and not list((job.folder / "cache").rglob("*.part"))


# Names


@pytest.mark.parametrize(
    "name",
    [
        "training",
        "training.json",
        "Training.JSON",
        "training.part",
        "a.",
        "con",
        "NUL.txt",
        "lpt1",
        ".a",
        "-a",
        "a" * 200,
        None,
    ],
)
def test_names_that_no_folder_can_have(tmp_path, name):
    with pytest.raises(ValueError, match="cannot name a prompt's folder"):
        compress_prompts([PromptJob(name, PROMPT, QUERIES)], tmp_path / "out", model="/no/such/model")
    assert not (tmp_path / "out").exists()


def test_names_that_are_one_folder_on_some_file_systems(tmp_path):
    jobs = [PromptJob(name, PROMPT, QUERIES) for name in ("pirate", "cook", "Pirate")]
    with pytest.raises(ValueError, match="'Pirate', 'pirate'"):
        compress_prompts(jobs, tmp_path / "out", model="/no/such/model")

"""A run: what stays in its folder when runs fail, are resumed, or replace each other, and how its training ends."""

import signal

import pytest
from safetensors.torch import load_file

from peft_be import compress_prompt
from peft_be.files import append_record, read_records
from peft_be.runs.folder import RunFolder

from ..stages import PROMPT
from .folders import OFTEN, OVERSHOOTING, content, finished


def test_a_finished_run_is_replaced_by_a_finished_one_only(tmp_path):
    folder = finished(tmp_path / "out")
    with pytest.raises(OSError, match="no model"), RunFolder(folder, {}, overwrite=True):
        raise OSError("no model")
    assert content(folder) == ["rows", "training.json"] and (folder / "rows").read_text() == "first"

    with pytest.raises(RuntimeError), RunFolder(folder, {"seed": 1}, overwrite=True) as run:
        append_record(run.work / "cells.jsonl", {"done": 1})
        raise RuntimeError
    assert (folder / ".replaced" / "rows").read_text() == "first"
    # Once more from the start: the unfinished run goes, the finished one stays
    with RunFolder(folder, {}, overwrite=True) as run:
        assert not (run.work / "cells.jsonl").exists() and (folder / ".replaced" / "rows").read_text() == "first"
        (folder / "rows").write_text("second")
        run.finish({})
    assert content(folder) == ["rows", "training.json"] and (folder / "rows").read_text() == "second"


def test_a_resumed_run_that_fails_keeps_its_work(tmp_path):
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path / "out", {}) as run:
        append_record(run.work / "cells.jsonl", {"done": 1})
        raise KeyboardInterrupt
    with pytest.raises(OSError), RunFolder(tmp_path / "out", {}, resume=True):
        raise OSError("the model cannot be loaded")
    with RunFolder(tmp_path / "out", {}, resume=True) as run:
        assert read_records(run.work / "cells.jsonl") == [{"done": 1}]


def test_an_empty_run_leaves_nothing(tmp_path):
    with pytest.raises(OSError), RunFolder(tmp_path / "out", {}):
        raise OSError("the model cannot be loaded")
    assert not (tmp_path / "out").exists()


def test_nobody_resumes_and_overwrites(tmp_path):
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path / "out", {}):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="--resume or --overwrite"):
        RunFolder(tmp_path / "out", {}, resume=True, overwrite=True)
    RunFolder(tmp_path / "out", {}, resume=True)


def test_other_files_are_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="not an empty folder"):
            RunFolder(tmp_path, {}, overwrite=overwrite)
    assert content(tmp_path) == ["thesis.txt"]


def test_a_resumed_run_stops_where_an_undisturbed_one_does(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    queries = [f"What was on day {i}?" for i in range(12)]

    def run(name, **options):
        args = {"model": tiny_model, "tokenizer": tiny_tokenizer, **OVERSHOOTING, **OFTEN, **options}
        result = compress_prompt(PROMPT, queries, tmp_path / name, **args)
        result.model.unload()
        return result.report

    alone = run("alone")
    last = alone["steps"]
    assert alone["best"]["step"] == last - 10 < 50  # five validations after the best

    def fail(stage, done, total, values):
        if stage == "stage 2" and done == last - 3:
            raise RuntimeError("the power is gone")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="power"):
        run("killed", on_progress=fail)
    assert signal.getsignal(signal.SIGINT) == before
    again = run("killed", resume=True)
    assert (again["steps"], again["best"]) == (last, alone["best"])
    rows = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("alone", "killed")]
    assert all(tensor.equal(rows[1][name]) for name, tensor in rows[0].items())


@pytest.mark.parametrize("settings", [{"max_steps": 0}, {"max_steps": -1}, {"reconstruction_steps": -1}])
def test_steps_that_cannot_be(tmp_path, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be at least"):
        compress_prompt(PROMPT, ["Who?", "Where?"], tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()

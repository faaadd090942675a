"""The teacher's cache: a damaged file is never used, the limit holds, and two processes do not disturb each other."""

import os
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from peft_be.teacher import AnswerCache, cached_answers, generate_answers
from peft_be.teacher.cache import cache_limit, cached_entries, make_room, teacher_cache_dir

from .models import PROMPTS, SETTINGS, SHARED, assert_same, make


def change(path, **tensors):
    """Write a file again with other tensors, as safetensors does: it can be read, and only its numbers are wrong."""
    save_file({**load_file(path), **{name: change(load_file(path)) for name, change in tensors.items()}}, path)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(500)),
    "a bit": lambda path: path.write_bytes(
        path.read_bytes()[:-3] + bytes([path.read_bytes()[-3] ^ 1]) + path.read_bytes()[-2:]
    ),
    "nan": lambda path: change(path, hidden=lambda t: t["hidden"] * float("nan")),
    "shape": lambda path: change(path, hidden=lambda t: t["hidden"][:, :-1].contiguous()),
    "rows": lambda path: change(path, hidden=lambda t: t["hidden"][:-1].contiguous()),
    "ids": lambda path: change(path, ids=lambda t: t["ids"] + 1),
    "queries": lambda path: change(path, query=lambda t: t["query"] + 100),
    "names": lambda path: save_file({"x": torch.zeros(1)}, path),
    "another batch": lambda path: shutil.copy(path.with_name("00001.safetensors"), path),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_never_used(tmp_path, name):
    model = make(SHARED["llama"]())
    fresh = generate_answers(model, PROMPTS, SETTINGS, 0)
    cached_answers(model, PROMPTS, SETTINGS, 0, tmp_path)
    (folder,) = tmp_path.iterdir()
    DAMAGES[name](folder / "00000.safetensors")
    assert_same(cached_answers(model, PROMPTS, SETTINGS, 0, tmp_path), fresh, exact=True)
    # And it is whole again
    before = (folder / "00000.safetensors").stat().st_mtime_ns
    cached_answers(model, PROMPTS, SETTINGS, 0, tmp_path)
    assert (folder / "00000.safetensors").stat().st_mtime_ns == before


def fill(directory, names, size=1000):
    for age, name in enumerate(reversed(names)):
        folder = directory / name
        folder.mkdir(parents=True)
        (folder / "00000.safetensors").write_bytes(b"x" * size)
        os.utime(folder, (time.time() - 100 - age,) * 2)


def test_what_was_used_least_recently_goes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path))
    monkeypatch.setenv("PEFT_BE_CACHE_LIMIT", "1MB")
    fill(teacher_cache_dir(), ["old", "older", "newer", "new"][::1], size=300_000)
    model = make(SHARED["llama"]())
    answers = cached_answers(model, PROMPTS, SETTINGS, 0, teacher_cache_dir())
    left = {path.name for path in teacher_cache_dir().iterdir()}
    assert {"newer", "new"} < left and "old" not in left and len(left) == 4 - ("older" not in left)
    assert sum(entry.size for entry in cached_entries(teacher_cache_dir())) <= 1_000_000
    # Reading counts as use
    monkeypatch.setenv("PEFT_BE_CACHE_LIMIT", "700KB")
    fill(teacher_cache_dir(), ["newest"], size=300_000)
    assert_same(cached_answers(model, PROMPTS, SETTINGS, 0, teacher_cache_dir()), answers, exact=True)
    make_room(teacher_cache_dir(), cache_limit())
    own = {path.name for path in teacher_cache_dir().iterdir()} - {"older", "newer", "new", "newest"}
    assert len(own) == 1


def test_answers_in_use_stay_whatever_the_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path))
    monkeypatch.setenv("PEFT_BE_CACHE_LIMIT", "0")
    model = make(SHARED["llama"]())
    other = AnswerCache(teacher_cache_dir(), {"of": "another process"})
    with other.in_use():
        answers = cached_answers(model, PROMPTS, SETTINGS, 0, teacher_cache_dir())
        assert other.directory.is_dir()
    # Mapped before they went: still readable
    make_room(teacher_cache_dir(), 0)
    assert not list(teacher_cache_dir().iterdir())
    assert_same(answers, generate_answers(model, PROMPTS, SETTINGS, 0), exact=True)


def test_a_cache_that_is_cleared_during_the_work(tmp_path):
    model = make(SHARED["llama"]())

    def clear(done, total):
        shutil.rmtree(tmp_path)

    answers = cached_answers(model, PROMPTS, SETTINGS, 0, tmp_path, on_progress=clear)
    assert_same(answers, generate_answers(model, PROMPTS, SETTINGS, 0), exact=True)


def test_a_trainers_own_folder_has_no_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PEFT_BE_CACHE_LIMIT", "0")
    fill(tmp_path / "own", ["old"])
    cached_answers(make(SHARED["llama"]()), PROMPTS, SETTINGS, 0, tmp_path / "own")
    assert (tmp_path / "own" / "old" / "00000.safetensors").is_file()


@pytest.mark.parametrize("text, size", [("", 8 * 10**9), ("5", 5), ("1.5 kb", 1500), ("20GB", 2 * 10**10), ("0", 0)])
def test_limits(monkeypatch, text, size):
    monkeypatch.setenv("PEFT_BE_CACHE_LIMIT", text)
    assert cache_limit() == size


@pytest.mark.parametrize("text", ["many", "-1", "5 apples", "nan", "1e9"])
def test_limits_that_are_none(monkeypatch, text):
    monkeypatch.setenv("PEFT_BE_CACHE_LIMIT", text)
    with pytest.raises(ValueError, match="PEFT_BE_CACHE_LIMIT"):
        cache_limit()

"""`peft-be cache` shows what is kept, and clears it."""

from pathlib import Path


def test_shown_and_cleared(cli, job, tmp_path):
    code, out, err = cli("cache")
    assert code == 0 and "0 bytes of 8.0 GB" in out, err
    assert cli(*job.with_(kd_weight=1))[0] == 0
    folder = Path(tmp_path / "cache")
    models = folder / "models" / "a-model"
    models.mkdir(parents=True)
    (models / "model.safetensors").write_bytes(b"x" * 2_000_000)
    code, out, err = cli("cache")
    assert code == 0, err
    assert "a-model" in out and "2.0 MB" in out and "prompts of up to" in out and str(folder) in out
    code, out, err = cli("cache", "teacher")
    assert code == 0 and "a-model" not in out, err

    code, out, err = cli("cache", "--clear")
    assert code == 0 and "Deleted" in out, err
    assert not list((folder / "teacher").iterdir()) and models.is_dir()
    code, out, err = cli("cache", "models", "--clear")
    assert code == 0 and "2.0 MB" in out and not models.exists(), err
    assert cli(*job.with_(kd_weight=1, overwrite=True))[0] == 0


def test_what_is_in_use_stays(cli, job):
    from peft_be.teacher import AnswerCache, teacher_cache_dir

    cache = AnswerCache(teacher_cache_dir(), {"of": "another process"})
    with cache.in_use():
        code, out, err = cli("cache", "--clear")
        assert code == 0 and "1 entries stay" in out and cache.directory.is_dir(), err
    cli("cache", "--clear")
    assert not cache.directory.exists()


def test_no_such_part(cli, job):
    code, _, err = cli("cache", "pictures")
    assert code == 1 and "pictures" in err and "teacher or models" in err


def test_a_limit_that_is_none(cli, job, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE_LIMIT", "a lot")
    code, _, err = cli(*job.with_(kd_weight=1))
    assert code == 1 and "PEFT_BE_CACHE_LIMIT is 'a lot'" in err

import json

from peft_be import load_adapter

from .manifests import options, write_manifest


def test_each_prompt_gets_an_adapter(cli, job, tiny_dir):
    manifest = write_manifest(job.folder)
    code, out, err = cli("compress-many", manifest, *options(job, tiny_dir))
    assert code == 0, err
    assert "one" in out and "two" in out and "KL, no prompt" in out
    for name in ("one", "two"):
        model, _ = load_adapter(job.folder / "many" / name)
        assert model.peft_config["default"].num_be_tokens == 1
        scores = job.folder / f"{name}.json"
        code, _, err = cli(
            "eval", job.folder / "many" / name, "--prompt", job.folder / "p.txt", "--queries", job.folder / "held_out.txt",
            "--json", scores,
        )  # fmt: skip
        assert code == 0, err
        # One of the three held-out queries was trained on
        assert json.loads(scores.read_text())["num_queries"] == 2
    code, _, err = cli("compress-many", manifest, *options(job, tiny_dir))
    assert code == 1 and "finished run" in err

    folders = [job.folder / "many" / name for name in ("one", "two")]
    code, out, err = cli("export", *folders, "--output", job.folder / "merged", "--default", "two")
    assert code == 0, err
    assert "<|be_one|>" in out and "<|be_two|>" in out
    assert (job.folder / "merged" / "model.safetensors").is_file()
    code, _, err = cli("export", folders[0], folders[0], "--output", job.folder / "again")
    assert code == 1 and "more than one is called one" in err


def test_what_fails_is_named_and_the_rest_is_done(cli, job, tiny_dir):
    (job.folder / "long.txt").write_text("word " * 500)
    manifest = write_manifest(
        job.folder,
        {"name": "gone", "prompt": "nowhere.txt", "queries": "q.txt"},
        {"name": "long", "prompt": "long.txt", "queries": "q.txt"},
    )
    code, out, err = cli("compress-many", manifest, *options(job, tiny_dir))
    assert code == 1
    assert "2 of 4 prompts failed" in err and "nowhere.txt" in err and "does not fit" in err
    assert sorted(p.name for p in (job.folder / "many").iterdir()) == ["one", "training.json", "two"]


def test_a_manifest_without_usable_prompts(cli, job, tiny_dir):
    manifest = job.folder / "manifest.jsonl"
    manifest.write_text(json.dumps({"name": "a", "prompt": "nowhere.txt", "queries": "queries.jsonl"}))
    code, _, err = cli("compress-many", manifest, *options(job, tiny_dir))
    assert code == 1 and "No prompt" in err and "nowhere.txt" in err
    assert not (job.folder / "many").exists()

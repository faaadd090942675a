"""A run that starts from the rows of an earlier adapter, such as the one for the prompt's previous version."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from peft_be import BETokenConfig, CompressConfig, PromptJob, compress_prompt, compress_prompts, load_model
from peft_be.adapters.create import add_ae_adapter
from peft_be.adapters.hub import hub_revision
from peft_be.prompting.fingerprints import sha256

from ..stages import FAST, PROMPT, QUERIES
from ..tiny import save_tiny_llama


NEW = PROMPT.replace("lighthouse keeper", "keeper of a lighthouse with a dog")
# Rows that stay where they start, but for 1e-4 of their length
STILL = {"learning_rate": 1e-5}


def assert_near(rows, others):
    torch.testing.assert_close(rows, others, rtol=0, atol=1e-4 * others.norm())


class Run:
    def __init__(self, folder, base):
        self.folder, self.base = folder, base

    def __call__(self, name, prompt=NEW, **options):
        args = {"model": self.base, **FAST, **options}
        return compress_prompt(prompt, QUERIES, self.folder / name, **args).report

    def rows(self, name):
        (rows,) = load_file(self.folder / name / "adapter_model.safetensors").values()
        return rows

    def provenance(self, name):
        return BETokenConfig.from_pretrained(self.folder / name).provenance


@pytest.fixture(scope="module")
def earlier(tmp_path_factory, tiny_tokenizer):
    """A folder with a base model and `old`, an adapter of two rows for it."""
    folder = tmp_path_factory.mktemp("earlier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFT_BE_CACHE", str(folder / "cache"))
        Run(folder, save_tiny_llama(folder / "base", tiny_tokenizer))("old", PROMPT, num_be_tokens=2)
    return folder


@pytest.fixture
def run(earlier, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(earlier / "cache"))
    shutil.copytree(earlier / "old", tmp_path / "old")
    return Run(tmp_path, str(earlier / "base"))


def test_training_starts_from_the_rows(run):
    old = run.folder / "old"
    run("still", from_adapter=old, num_be_tokens=2, **STILL)
    assert_near(run.rows("still"), run.rows("old"))
    report = run("new", from_adapter=old, num_be_tokens=2)
    assert not torch.allclose(run.rows("new"), run.rows("old"))
    run("fresh", num_be_tokens=2)
    assert not torch.allclose(run.rows("new"), run.rows("fresh"))
    # What it started from is recorded, and is no part of what the prompt's own training did
    record = {"adapter": str(old), "rows_sha256": sha256(run.rows("old").tolist())}
    assert run.provenance("new")["started_from"] == record and run.provenance("new")["stages"] == ["stage 2"]
    assert report["settings"]["from_adapter"] == str(old)
    assert "started_from" not in run.provenance("fresh")
    assert "3 steps on 4 queries, from the rows of an earlier adapter." in (run.folder / "new/README.md").read_text()
    assert "earlier adapter" not in (run.folder / "fresh" / "README.md").read_text()


def test_rows_that_are_added_start_as_those_of_a_new_adapter(run):
    run("fresh", num_be_tokens=4, **STILL)
    run("grown", num_be_tokens=4, from_adapter=run.folder / "old", **STILL)
    assert_near(run.rows("grown")[:2], run.rows("old"))
    assert_near(run.rows("grown")[2:], run.rows("fresh")[2:])


def test_a_search_starts_from_them_too(run, monkeypatch):
    monkeypatch.setattr("peft_be.runs.search.FEWEST_STEPS", 2)
    options = {"target": 0.01, "num_be_tokens": 2, "from_adapter": run.folder / "old", **STILL}

    def stop(what, done, total, values):
        if what.startswith("stage 2"):
            raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError):
        run("new", on_progress=stop, **options)
    # The first probe's rows count the steps of the old adapter
    probe = json.loads((run.folder / "new" / "training" / "search.jsonl").read_text().splitlines()[0])
    assert probe["k"] == 2 and probe["taught"] == 3 + probe["steps"]
    run("new", resume=True, **options)
    assert_near(run.rows("new")[:2], run.rows("old"))
    assert "started_from" in run.provenance("new")


def test_a_resumed_run_starts_from_the_same(run):
    options = {"num_be_tokens": 2, "max_steps": 4, "eval_steps": 1, "save_steps": 1}
    run("alone", from_adapter=run.folder / "old", **options)

    def stop(what, done, total, values):
        if what == "stage 2" and done == 3:
            raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError):
        run("new", from_adapter=run.folder / "old", on_progress=stop, **options)
    shutil.copytree(run.folder / "old", run.folder / "copy")
    with pytest.raises(ValueError, match="started with another from adapter"):
        run("new", from_adapter=run.folder / "copy", resume=True, **options)
    weights = run.folder / "old" / "adapter_model.safetensors"
    kept = weights.read_bytes()
    save_file({name: 2 * rows for name, rows in load_file(weights).items()}, weights)
    with pytest.raises(ValueError, match="started with another adapter to start from"):
        run("new", from_adapter=run.folder / "old", resume=True, **options)
    weights.write_bytes(kept)
    run("new", from_adapter=run.folder / "old", resume=True, **options)
    assert torch.equal(run.rows("new"), run.rows("alone"))
    assert run.provenance("new")["started_from"] == run.provenance("alone")["started_from"]
    # Without the option it is another run; and a finished one is returned
    with pytest.raises(ValueError, match="started with another from adapter"):
        run("new", resume=True, **options)
    run("new", from_adapter=run.folder / "old", resume=True, **options)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"num_be_tokens": 1}, "has 2 rows, which are more than num_be_tokens=1.*set num_be_tokens to 2 or more"),
        ({"num_be_tokens": 2, "slot": "prefix"}, "learned in slot 'system', and slot is 'prefix' now"),
        ({"num_be_tokens": 2, "init": "random"}, "All 2 rows start from .* init='random' says nothing"),
        ({"from_adapter": "/no/such/folder"}, "There is no adapter in '/no/such/folder'"),
    ],
)
def test_rows_that_cannot_be_the_start(run, settings, words):
    # Said before the model is loaded
    options = {"from_adapter": run.folder / "old", "model": "/no/such/model", **settings}
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        run("new", **options)
    assert not (run.folder / "new").exists()


def test_the_output_folder_is_no_start(run):
    with pytest.raises(ValueError, match="is the output folder, too"):
        run("old", from_adapter=run.folder / "old" / ".." / "old", num_be_tokens=2, overwrite=True)
    assert run.rows("old").shape == (2, 32)


def test_adapters_without_rows_of_a_prompt(run, tmp_path):
    model = add_ae_adapter(*load_model(run.base))
    model.save_pretrained(tmp_path / "ae")
    with pytest.raises(ValueError, match="holds an .AE. row, which is for training only"):
        run("new", from_adapter=tmp_path / "ae")


def test_rows_of_another_base_model(run, tiny_tokenizer, tmp_path):
    other, _ = load_model(run.base)
    other.model.layers[0].mlp.down_proj.weight.data.mul_(1.5)
    other.save_pretrained(tmp_path / "tuned")
    tiny_tokenizer.save_pretrained(tmp_path / "tuned")
    wide = save_tiny_llama(tmp_path / "wide", tiny_tokenizer, width=64)
    for base in (str(tmp_path / "tuned"), wide):
        with pytest.raises(ValueError, match="was trained on another base model, or on other weights of this one"):
            run("new", from_adapter=run.folder / "old", num_be_tokens=2, model=base)
        assert not (run.folder / "new").exists()


def test_where_it_is_not_for():
    with pytest.raises(ValueError, match="reconstruction_steps prepare new rows"):
        CompressConfig(from_adapter="old", reconstruction_steps=3)
    with pytest.raises(ValueError, match="from_adapter is for a prompt that is compressed alone"):
        compress_prompts([PromptJob("a", PROMPT, QUERIES)], "out", from_adapter="old")


def test_the_revision_of_an_adapter_from_the_hub(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "hub" / "models--me--keeper" / "snapshots" / commit
    assert hub_revision(folder) == hub_revision(folder / "one") == commit
    assert hub_revision(tmp_path / "keeper") is None

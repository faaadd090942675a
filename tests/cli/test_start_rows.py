"""Where rows start shows in what can be read from them: `--init` chooses, and a resumed run keeps the choice."""

import json

import pytest

from peft_be import load_adapter
from peft_be.evaluation.audit.audit import nearest_tokens

from .conftest import PROMPT
from .manifests import options, write_manifest


TEXT = "Aye, captain"
START = {"init": "text", "init_text": TEXT, "num_be_tokens": 3}


def spelt_by(folder):
    """The words nearest to the rows of an adapter, and those of its settings that say where they started."""
    model, tokenizer = load_adapter(folder)
    table = model.get_input_embeddings().get_base_layer().weight
    nearest = nearest_tokens(model.base_model.get_rows("default"), table, tokenizer)
    settings = json.loads((folder / "training.json").read_text())["settings"]
    return "".join(words[0] for words in nearest), settings["init"], settings["init_text"]


@pytest.mark.parametrize(
    "changes, text, init, init_text",
    [
        ({"num_be_tokens": 3}, PROMPT, "auto", None),
        ({"num_be_tokens": 1, "init": "prompt"}, PROMPT, "prompt", None),
        (START, TEXT, "text", TEXT),
    ],
)
def test_rows_spell_what_they_start_from(cli, job, tiny_tokenizer, changes, text, init, init_text):
    code, _, err = cli(*job.with_(**changes))
    assert code == 0, err
    words = tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"][: changes["num_be_tokens"]])
    assert spelt_by(job.folder / "out") == (words, init, init_text)


def test_rows_that_start_elsewhere_do_not_spell_the_prompt(cli, job, tiny_tokenizer):
    for init in ("neutral", "random"):
        code, _, err = cli(*job.with_(num_be_tokens=3, init=init, overwrite=True))
        assert code == 0, err
        words = tiny_tokenizer.decode(tiny_tokenizer(PROMPT)["input_ids"][:3])
        assert spelt_by(job.folder / "out")[0] != words


def test_many_prompts_start_from_one_text(cli, job, tiny_dir):
    start = ["--init", "text", "--init-text", TEXT, "--num-be-tokens", 3]
    code, _, err = cli("compress-many", write_manifest(job.folder), *options(job, tiny_dir), *start)
    assert code == 0, err
    for name in ("one", "two"):
        assert spelt_by(job.folder / "many" / name)[1:] == ("text", TEXT)


def test_a_resumed_run_starts_where_it_started(cli, job):
    assert cli(*job.with_(**START))[0] == 0
    assert cli(*job.with_(**START, resume=True))[0] == 0
    for changes, name in (({"init_text": "You are"}, "init text"), ({"init": "random", "init_text": None}, "init")):
        code, _, err = cli(*job.with_(**{**START, **changes}, resume=True))
        assert code == 1 and f"another {name}" in err

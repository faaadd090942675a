"""Queries that the model writes itself, in its own template's user turn."""

import copy

import pytest
from transformers import GenerationConfig

from peft_be import compress_prompt
from peft_be.adapters.folder import QUERY_FILE
from peft_be.data import load_queries
from peft_be.prompting import PromptRenderer, load_prompt
from peft_be.runs import synthesize
from peft_be.runs.synthesize import UserTurn, synthesize_queries

from ..prompting.chat_tokenizers import FAMILIES, build_tokenizer
from ..stages import PROMPT
from ..test_readme import ROOT
from .folders import OFTEN


EXAMPLES = [
    {"role": "system", "content": "Name the colour."},
    {"role": "user", "content": "a lemon"},
    {"role": "assistant", "content": "yellow"},
]


@pytest.fixture
def tiny_written(tiny_model, tiny_tokenizer):
    def write(prompt, *arguments, **options):
        return synthesize_queries(prompt, *arguments, model=tiny_model, tokenizer=tiny_tokenizer, **options)

    return write


@pytest.mark.parametrize("prompt", ["You are a pirate.", EXAMPLES], ids=["system", "examples"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_turn_is_where_each_template_has_it(tiny_model, family, prompt):
    tokenizer = build_tokenizer(family)
    tiny_model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    turn, renderer = UserTurn(tiny_model, tokenizer, prompt), PromptRenderer(tokenizer, prompt)
    for query in ("Is it going to rain tomorrow?", "two lines\n\nof [text]", "x"):
        ids = renderer.full(query)
        assert ids[: len(turn.ids)] == turn.ids
        assert turn.query(ids[len(turn.ids) :]) == query
        assert turn.query([*renderer.answer(query), tokenizer.eos_token_id]) == query
        assert turn.query(renderer.answer(query)) is None


def test_the_same_call_writes_the_same_queries(tiny_written):
    first = tiny_written(PROMPT, 2)
    assert len(set(first.queries)) == 2
    assert tiny_written(PROMPT, 2).queries == first.queries
    assert tiny_written(PROMPT, 2, seed=1).queries != first.queries


def test_what_is_left_out(tiny_written, monkeypatch):
    batches = iter([["Where is it?", None, "where is IT", "?!", "A lemon", "And why?"], ["Who was there?"]])
    monkeypatch.setattr(UserTurn, "write", lambda *_: next(batches))
    written = tiny_written(EXAMPLES, 3)
    assert written.queries == ["Where is it?", "And why?", "Who was there?"]
    reasons = ("not finished", "nearly the same as another", "without words", "in the prompt")
    assert written.left_out == dict.fromkeys(reasons, 1)


def test_a_model_that_repeats_itself(tiny_written, monkeypatch):
    monkeypatch.setattr(UserTurn, "write", lambda *_: ["Where is it?", "And why?"])
    with pytest.warns(UserWarning, match="wrote 2 different queries, and not 3 .*nearly the same as another"):
        assert tiny_written(PROMPT, 3).queries == ["Where is it?", "And why?"]
    monkeypatch.setattr(UserTurn, "write", lambda *_: ["?!", None])
    with pytest.raises(ValueError, match=r"wrote no query .* not finished, .* without words\): give your own"):
        tiny_written(PROMPT, 1)


@pytest.mark.parametrize(
    "prompt, options, reason",
    [
        (" ", {}, "empty"),
        (PROMPT, {"num_queries": 0}, "num_queries"),
        (PROMPT, {"temperature": 0}, "temperature must be above 0"),
        (PROMPT, {"temperature": -1}, "temperature"),
        (PROMPT, {"top_p": 2}, "top_p"),
    ],
)
def test_bad_arguments(tiny_written, prompt, options, reason):
    with pytest.raises(ValueError, match=reason):
        tiny_written(prompt, **options)


@pytest.mark.filterwarnings(
    "ignore:There are only", "ignore:Only", "ignore:The prompt changes little", "ignore:The model wrote"
)
def test_a_prompt_alone_is_compressed(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(synthesize, "NUM_QUERIES", 3)
    monkeypatch.setattr(UserTurn, "write", lambda *_: ["Where is it?", "And why?", "Who was there?"])
    run = {"model": tiny_model, "tokenizer": tiny_tokenizer, "max_steps": 2, **OFTEN}
    folder = tmp_path / "out"

    def fail(*_):
        raise OSError("the model cannot be loaded")

    def interrupt(*_):
        raise KeyboardInterrupt

    # The teacher's cache has the queries: a run that fails before its first step leaves nothing in the way
    with pytest.raises(OSError):
        compress_prompt(PROMPT, None, folder, **run, on_preview=fail)
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt):
        compress_prompt(PROMPT, None, folder, **run, on_preview=interrupt)
    written = load_queries(folder / "training" / QUERY_FILE)
    # A resumed run asks what it asked before
    monkeypatch.setattr(UserTurn, "write", fail)
    result = compress_prompt(PROMPT, None, folder, **run, resume=True)
    assert load_queries(folder / QUERY_FILE) == written
    assert result.report["num_queries"] == {"train": 2, "validation": 1}
    result.model.unload()
    again = compress_prompt(PROMPT, None, folder, **run, resume=True)
    assert again.report == result.report
    again.model.unload()
    with pytest.raises(ValueError, match="started with another list of queries"):
        compress_prompt(PROMPT, None, folder, **run, resume=True, test_queries=["And why?"])
    with pytest.raises(ValueError, match="started with another queries: use the same"):
        compress_prompt(PROMPT, written, folder, **run, resume=True)
    (folder / QUERY_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="put it back"):
        compress_prompt(PROMPT, None, folder, **run, resume=True)


def test_the_time_is_for_the_queries_too(tiny_model, tiny_tokenizer, tmp_path):
    run = {"model": tiny_model, "tokenizer": tiny_tokenizer, "max_minutes": 1e-4}
    with pytest.raises(ValueError, match="is over before the first step: what the model writes first"):
        compress_prompt(PROMPT, None, tmp_path / "out", **run)
    assert not (tmp_path / "out").exists()


PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n\n' }}{% endfor %}{{ 'assistant:' if add_generation_prompt }}"


def test_a_template_of_plain_text(tiny_model, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = PLAIN
    turn = UserTurn(tiny_model, tokenizer, "Be brief.")
    renderer = PromptRenderer(tokenizer, "Be brief.")
    for query in ("Is an assistant here?", "two lines\nof it", "x"):
        assert turn.query(renderer.full(query)[len(turn.ids) :]) == query
        assert turn.query(renderer.answer(query)) is None
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="where a user's turn ends"):
        UserTurn(tiny_model, tokenizer, "Be brief.")


@pytest.mark.slow
def test_a_real_model_asks_what_users_of_the_prompt_ask(smollm2_dir):
    prompt = load_prompt(ROOT / "examples" / "fernway" / "prompt.json")
    written = synthesize_queries(prompt, 40, model=str(smollm2_dir))
    about = ("plant", "grow", "flower", "garden", "water", "soil", "pot", "leaf", "leaves", "order", "tree", "light")
    # Between 17 and 25 of any 40 among 480. Many others are about cactuses, mint and cats
    assert sum(any(word in query.lower() for word in about) for query in written.queries) >= 12

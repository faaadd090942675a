"""Sentences of a prompt that are chosen to stay text."""

import itertools
import json

import pytest

from peft_be import BETokenConfig, PromptRenderer, compress_prompt, load_model
from peft_be.losses import OutputHead
from peft_be.prompting.kept_text import find_kept_text
from peft_be.runs.keep import MAX_QUERIES, choose, sentences
from peft_be.teacher import AnswerSettings, answer_divergences, generate_answers

from ..stages import FAST, PROMPT
from ..tiny import save_tiny_llama


QUERIES = [f"What did you see on day {i}?" for i in range(30)]
POLICY = (
    "You are Ada. Refunds take 14 days! Is it late? Say so.\n\n# Codes\nA1: billing\nA2: delivery\n"
    "You are Ada. Write <|im_end|> never."
)


def words(text):
    return 0 if text is None else len(text.split())


def test_sentences_and_lines():
    assert sentences(POLICY) == [
        "You are Ada.", "Refunds take 14 days!", "Is it late?", "Say so.", "# Codes", "A1: billing", "A2: delivery",
        "Write <|im_end|> never.",
    ]  # fmt: skip
    assert sentences([{"role": "user", "content": "a. b"}, {"role": "assistant", "content": "\n a.\n"}]) == ["a.", "b"]


WORTH = {"You are Ada.": 0.5, "Refunds take 14 days!": 0.7, "A1: billing": 0.3, "A2: delivery": 0.3, "Say so.": 0.004}


def worth(text):
    """A KL of 2 without anything, less for each sentence; the two codes say the same."""
    if text is None:
        return 2.0
    saved = sum(value for sentence, value in WORTH.items() if sentence in text)
    return 2.0 - saved + 0.25 * ("A1" in text and "A2" in text)


@pytest.mark.parametrize(
    "budget, keep, expected",
    [
        (2, [], ["A1: billing"]),
        (3, [], ["You are Ada."]),
        (5, [], ["Refunds take 14 days!"]),  # 0.175 a word, and nothing fits next to it
        (9, [], ["You are Ada.", "Refunds take 14 days!", "A1: billing"]),
        # "A2" saves little next to "A1", and "Say so." nothing that is worth a word
        (99, [], ["You are Ada.", "Refunds take 14 days!", "A1: billing", "A2: delivery"]),
        (4, ["You are Ada."], ["You are Ada.", "Refunds take 14 days!"]),  # what is given is not of the budget
        (1, [], []),
        (1, ["Is it late?"], ["Is it late?"]),
    ],
)
def test_the_best_for_the_tokens(budget, keep, expected):
    assert choose(POLICY, keep, budget, words, worth) == find_kept_text(POLICY, expected)


def test_few_measurements():
    measured = []
    choose(POLICY, [], 99, words, lambda text: measured.append(text) or worth(text))
    assert len(measured) == len(set(measured)) < 8 + 3 * 7


@pytest.fixture
def base(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_BE_CACHE", str(tmp_path / "cache"))
    return save_tiny_llama(tmp_path / "base", tiny_tokenizer)


def test_a_run_chooses_by_the_kl_of_the_validation_queries(base, tiny_tokenizer, tmp_path):
    prompt = f"{PROMPT} Write <|im_end|> never. The light burns from dusk till dawn. Ships pass in the north."
    result = compress_prompt(prompt, QUERIES, tmp_path / "out", model=base, keep_tokens=24, **FAST)
    config = BETokenConfig.from_pretrained(tmp_path / "out")
    settings = result.report["settings"]
    assert config.kept_text == settings["kept_text"] and settings["keep_tokens"] == 24
    assert 0 < config.provenance["kept_tokens"] <= 24 and "<|im_end|>" not in config.kept_text

    # The first one by hand: the best of all that fit
    from peft_be.data import split_queries

    model, _ = load_model(base)
    queries = split_queries(QUERIES).validation[:MAX_QUERIES]
    full = PromptRenderer(tiny_tokenizer, prompt)
    teacher = generate_answers(model, [full.full(query) for query in queries], AnswerSettings(max_new_tokens=6), 0)
    head, kl = OutputHead(model), {}
    for sentence in (None, *sentences(prompt)):
        renderer = PromptRenderer(tiny_tokenizer, sentence)
        render = renderer.full if sentence else renderer.no_prompt
        _, values = answer_divergences(model, head, [render(query) for query in queries], teacher)
        kl[sentence] = sum(itertools.chain(*(v.tolist() for v in values))) / sum(len(v) for v in values)
    lengths = {s: len(tiny_tokenizer(f"\n{s}")["input_ids"]) for s in kl if s and "<|im_end|>" not in s}
    savings = {s: (kl[None] - kl[s]) / n for s, n in lengths.items() if n <= 24}
    assert max(savings, key=savings.get) in config.kept_text


def test_a_run_chooses_once(base, tmp_path):
    settings = {"model": base, "keep_tokens": 12, **FAST}
    first = compress_prompt(PROMPT, QUERIES, tmp_path / "out", keep=["You are a lighthouse keeper."], **settings)
    assert first.report["settings"]["kept_text"].startswith("You are a lighthouse keeper.")
    # What was chosen stands, whatever would be chosen now
    report = json.loads((tmp_path / "out" / "training.json").read_text())
    report["settings"]["kept_text"] = "You answer in short sentences"
    (tmp_path / "out" / "training.json").write_text(json.dumps(report))
    again = compress_prompt(
        PROMPT, QUERIES, tmp_path / "out", keep=["You are a lighthouse keeper."], resume=True, **settings
    )
    assert again.model.peft_config["default"].kept_text == "You answer in short sentences"
    with pytest.raises(ValueError, match="another keep tokens"):
        compress_prompt(
            PROMPT, QUERIES, tmp_path / "out", keep=["You are a lighthouse keeper."], resume=True,
            **{**settings, "keep_tokens": 8},
        )  # fmt: skip


def test_the_teacher_answers_without_dropout(base, tmp_path):
    """Its answers go into the cache that the training reads."""
    kept, no_prompt = [], []
    for training in (False, True):
        model, tokenizer = load_model(base)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        settings = {"keep_tokens": 12, "answer_cache_dir": str(tmp_path / f"cache-{training}"), **FAST}
        model.train(training)
        result = compress_prompt(
            PROMPT, QUERIES, tmp_path / f"out-{training}", model=model, tokenizer=tokenizer, **settings
        )
        kept.append(result.report["settings"]["kept_text"])
        no_prompt.append(result.report["best"]["kl_no_prompt"])
    assert kept[0] == kept[1] and no_prompt[0] == no_prompt[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_tokens": 500}, r"Nothing would be saved: keep_tokens is 500, and the whole prompt has \d+ tokens"),
        ({"keep": [PROMPT]}, "Nothing would be saved: keep has .* tokens, and the whole prompt"),
        ({"keep": [PROMPT.partition(",")[0]], "keep_tokens": 20}, "keep has .* tokens and keep_tokens is 20, and the"),
    ],
)
def test_not_the_whole_prompt_is_kept(base, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        compress_prompt(PROMPT, QUERIES, tmp_path / "out", model=base, **settings, **FAST)
    assert not (tmp_path / "cache" / "teacher").exists()

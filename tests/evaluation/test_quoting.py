"""Which tokens of an answer are quoted from the prompt, against a count by hand of words."""

from hypothesis import given
from hypothesis import strategies as st

from peft_be.evaluation.quoting import QUOTED_WORDS, copies, quoted_tokens

from ..tiny import TOKENIZER


WORDS = ["sea", "Lamp", "café", "keeper", "naïve", "42", "Ωmega", "rum", "island", "Łódź", "x1", "ship", "storm", "of"]
PIRATE = "You are a swaying, sharp-witted pirate captain of the seven seas 🏴‍☠️. Never leave the ship."


def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TOKENIZER)


TOKENS = tokenizer()


def marked(prompt, query, answer):
    ids = TOKENS(answer, add_special_tokens=False)["input_ids"]
    (mask,) = quoted_tokens(TOKENS, prompt, [query], [ids])
    return ids, mask


def quoted_text(prompt, query, answer):
    ids, mask = marked(prompt, query, answer)
    return TOKENS.decode([token for token, quoted in zip(ids, mask) if quoted])


def runs(words):
    return {tuple(map(str.casefold, words[i : i + QUOTED_WORDS])) for i in range(len(words) - QUOTED_WORDS + 1)}


texts = st.lists(st.sampled_from(WORDS), max_size=30)


@given(
    texts, texts, st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from([" ", ", ", "! 🌊 ", "\n"])), max_size=30)
)
def test_a_token_is_quoted_where_its_word_is_in_a_run_of_the_prompts(prompt, query, answer):
    known = runs(prompt) - runs(query)
    text, places = "", []
    for word, separator in answer:
        places.append((len(text), len(text) + len(word)))
        text += word + separator
    words = [word.casefold() for word, _ in answer]
    spans = [
        (places[i][0], places[i + QUOTED_WORDS - 1][1])
        for i in range(len(words) - QUOTED_WORDS + 1)
        if tuple(words[i : i + QUOTED_WORDS]) in known
    ]
    encoded = TOKENS(text, add_special_tokens=False, return_offsets_mapping=True)
    expected = [any(s < end and e > start for start, end in spans) for s, e in encoded["offset_mapping"]]
    (mask,) = quoted_tokens(TOKENS, " ".join(prompt) or "-", [" ".join(query) or "-"], [encoded["input_ids"]])
    assert mask == expected


def test_an_answer_may_start_where_the_prompt_goes_on():
    """The same words have other ids there: the first one has no space before it, and a capital letter."""
    answer = "Swaying sharp-witted pirate captain of the SEVEN SEAS"
    ids, mask = marked(PIRATE, "Who are you?", answer)
    start = TOKENS("Swaying", add_special_tokens=False)["input_ids"]
    assert ids[: len(start)] == start and not set(start) <= set(TOKENS(PIRATE)["input_ids"])
    assert all(mask)


def test_what_the_query_says_is_no_quotation():
    said = "a swaying, sharp-witted pirate captain of"
    answer = f"I am {said} nothing."
    assert quoted_text(PIRATE, "Who are you?", answer).strip() == said
    assert quoted_text(PIRATE, f"Are you {said} the sea?", answer) == ""
    turns = [{"role": "user", "content": f"Be {said} the sea!"}, {"role": "assistant", "content": "Aye."}]
    assert quoted_text(PIRATE, [*turns, {"role": "user", "content": "Who are you?"}], answer) == ""


def test_no_run_goes_from_one_message_to_the_next():
    prompt = [{"role": "user", "content": "One two three"}, {"role": "assistant", "content": "four five six"}]
    assert quoted_text(prompt, "And?", "One two three four five six") == ""
    prompt[0]["content"] += " four five"
    assert quoted_text(prompt, "And?", "One two three four five six") == "One two three four five"


def test_scripts_without_spaces_and_characters_of_several_tokens():
    prompt = "あなたは灯台守です。島を離れません。"
    ids, mask = marked(prompt, "誰?", "私は灯台守です、はい")
    assert len(ids) > len("私は灯台守です、はい")  # several tokens a character
    assert "�" not in quoted_text(prompt, "誰?", "私は灯台守です、はい")
    assert quoted_text(prompt, "誰?", "私は灯台守です、はい") == "は灯台守です"
    whole = "seven seas 🏴‍☠️. Never leave the ship"
    assert quoted_text(PIRATE, "Hm?", whole) == whole


def test_the_end_of_a_turn_is_not_quoted():
    ids = TOKENS("swaying, sharp-witted pirate captain of", add_special_tokens=False)["input_ids"]
    (mask,) = quoted_tokens(TOKENS, PIRATE, ["Who?"], [[*ids, TOKENS.eos_token_id]])
    assert mask == [True] * len(ids) + [False]


def test_copies_come_with_the_worst_first():
    quoted = [[True, False], [True, True, False], [False], [True] * 4, []]
    queries = ["half", "most", "none", [{"role": "user", "content": "all"}], "empty"]
    assert copies(quoted, queries, list("abcde")) == [
        {"query": "all", "answer": "d", "quoted": 1.0},
        {"query": "most", "answer": "b", "quoted": 2 / 3},
    ]

"""Held-out queries that stand in the prompt, whose answers can be copied from there."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_be.evaluation.held_out import outside_the_prompt, passages_of


SYSTEM = (
    "You are Anne Bonny, a pirate. If somebody asks what you would do with a chest full of gold, laugh.\n\n"
    "Q: What is the worst storm that you have ever sailed through?\nA: The one off Tortuga, in the year of 1720.\n"
    "Question 2: Where is home?\nA: There is no home but the sea. Who are you to ask?"
)
EXAMPLES = [
    {"role": "system", "content": "You add numbers."},
    {"role": "user", "content": "What is 3 plus 4?"},
    {"role": "assistant", "content": "It is 7."},
    {"role": "user", "content": "Thanks!"},
    {"role": "assistant", "content": "Any time."},
]


@pytest.mark.parametrize(
    ("query", "passage"),
    [
        ("what is the WORST storm that you have ever sailed through", "What is the worst storm that you have ever sailed through?"),
        ("Ever sailed through the worst storm?", None),
        ("What is the worst storm that you've ever sailed through?", "What is the worst storm that you have ever sailed through"),
        ("What is the worst storm that you have ever sailed into?", "Q: What is the worst storm that you have ever sailed"),
        ("What is the best day that you have ever had at sea?", None),
        ("Where is home?", "Where is home?"),
        ("where is HOME", "Where is home?"),
        ("Who are you?", None),  # three words that any text may have
        ("You would do with a chest full of gold", "you would do with a chest full of gold"),
        ("What happened off Tortuga, in the year of 1720?", None),
        ("!?", None),
        ([{"role": "user", "content": "Aye"}, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Where is home?"}], "Where is home?"),
    ],
)  # fmt: skip
def test_passages_of_a_system_text(query, passage):
    assert passages_of(SYSTEM, [query]) == [passage]


@pytest.mark.parametrize(
    ("query", "is_there"),
    [("What is 3 plus 4?", True), ("what is 3 plus 4", True), ("What is 3 plus 5?", False), ("thanks", True), ("Any.", False)],
)  # fmt: skip
def test_passages_of_worked_examples(query, is_there):
    assert (passages_of(EXAMPLES, [query])[0] is not None) is is_there


WORDS = st.lists(st.sampled_from("sea lamp keeper rum island ship storm of the a".split()), min_size=5, max_size=40)


@given(WORDS, st.data())
def test_every_run_of_the_prompts_words_is_found(words, data):
    start = data.draw(st.integers(0, len(words) - 5))
    end = data.draw(st.integers(start + 5, len(words)))
    query = ", ".join(words[start:end]).upper()
    (found,) = passages_of(" ".join(words), [query])
    assert found is not None and len(found.split()) == end - start


@given(WORDS, st.lists(st.sampled_from("why who when where how does she it go come".split()), min_size=1))
def test_other_words_are_not(words, query):
    assert passages_of(" ".join(words), [" ".join(query)]) == [None]


def test_they_are_left_out_with_a_note():
    queries = ["Who are you?", "Where is home?", "Is it cold?"]
    with pytest.warns(UserWarning, match="Left out 1 of 3 held-out queries, .* such as 'Where is home.'"):
        kept, left_out = outside_the_prompt(SYSTEM, queries)
    assert kept == ["Who are you?", "Is it cold?"]
    assert left_out == [{"query": "Where is home?", "passage": "Where is home?"}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outside_the_prompt(SYSTEM, kept) == (kept, []) and outside_the_prompt(SYSTEM, []) == ([], [])


def test_none_may_be_left():
    with pytest.raises(ValueError, match="All held-out queries stand in the prompt, such as 'What is 3 plus 4.'"):
        outside_the_prompt(EXAMPLES, ["What is 3 plus 4?", "Thanks!"])

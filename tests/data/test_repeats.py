"""Queries that repeat what stands in a prompt, and each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_be.data.repeats import nearly_same, passages_of
from peft_be.data.words import words as words_of


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


@pytest.mark.parametrize(
    "other, same",
    [("what is the way to the next harbour, from here?", True), ("What is the way to the last harbour from here", True),
     ("What is the way to the last tavern from here?", False), ("Is the way to the next harbour from here?", True)],
)  # fmt: skip
def test_texts_that_are_nearly_the_same(other, same):
    assert nearly_same(words_of("What is the way to the next harbour from here?"), words_of(other)) is same


def test_another_number_is_another_text():
    one, other = (words_of(f"How many of the guests in the house have paid {n} pounds?") for n in (30, 40))
    assert not nearly_same(one, other)

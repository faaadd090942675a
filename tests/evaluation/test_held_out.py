"""Held-out queries that stand in the prompt, whose answers can be copied from there."""

import warnings

import pytest

from peft_be.evaluation.held_out import outside_the_prompt


SYSTEM = "You are Anne Bonny, a pirate.\n\nQ: Where is home?\nA: There is no home but the sea. Who are you to ask?"


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
    with pytest.raises(ValueError, match="All held-out queries stand in the prompt, such as 'Where is home.'"):
        outside_the_prompt(SYSTEM, ["Where is home?", "where is HOME"])

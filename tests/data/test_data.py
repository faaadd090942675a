import json

import pytest

from peft_be.data import load_corpus, load_queries, passages, query_key, split_queries


def test_query_files(tmp_path):
    (tmp_path / "q.txt").write_text("  What?  \n\nWhy?\n")
    assert load_queries(tmp_path / "q.txt") == ["What?", "Why?"]
    dialogue = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    rows = [
        {"query": "1"},
        {"prompt": "2"},
        {"question": "3"},
        {"instruction": "4", "prompt": ""},
        {"query": dialogue},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_queries(tmp_path / "q.jsonl") == ["1", "2", "3", "4", dialogue]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("validation", [None, ["query 5", "QUERY 7", "Another", "another "]])
def test_splits_are_disjoint_and_lose_nothing(seed, validation):
    queries = [f"Query {i % 60}" for i in range(100)] + ["query   7 ", "QUERY 8"]
    test = ["query 3", "Query 5", "Query  5", "Other"]
    splits = split_queries(queries, test, seed=seed, validation_queries=validation)
    given = queries + test + (validation or [])
    sides = [{query_key(q) for q in side} for side in (splits.train, splits.validation, splits.test)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert sides[0] | sides[1] | sides[2] == {query_key(q) for q in given}
    assert [len(s) for s in sides] == [len(splits.train), len(splits.validation), len(splits.test)]
    assert splits.test == ["query 3", "Query 5", "Other"]
    assert validation is None or splits.validation == ["QUERY 7", "Another"]
    assert splits.num_duplicates == len(given) - sum(map(len, sides))
    again = split_queries(queries, test, seed=seed, validation_queries=validation)
    assert (again.train, again.validation) == (splits.train, splits.validation)


def test_a_dialogue_of_one_turn_is_its_text():
    user, assistant = ({"role": role, "content": "A  b"} for role in ("user", "assistant"))
    assert query_key([user]) == query_key("a B\n")
    longer = query_key([user, assistant, user])
    assert longer == query_key([{**message, "content": "a\nB "} for message in (user, assistant, user)])
    assert longer not in {query_key([user]), query_key([assistant, assistant, user]), query_key("A b A b A b")}


@pytest.mark.parametrize(
    "one, other",
    [
        ("A  b\n", "a B"),
        ("Où est le café ?", "ou\u0300 est le cafe\u0301\xa0?"),
        ("What?", "\ufeffWhat?"),
        ("What now?", "What\u200b now\u2060?"),
        ("co\xadoperate", "cooperate"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("Μαΐου", "ΜΑΐΟΥ"),
    ],
)
def test_queries_that_look_alike_are_the_same(one, other):
    assert query_key(one) == query_key(other)
    assert query_key([{"role": "user", "content": one}]) == query_key(other)
    assert split_queries([one, "x", "y"], [other]).num_duplicates == 1


def test_what_reads_differently_is_not_the_same():
    texts = ["What is 2²?", "What is 22?", "What is 2 2?", "resume", "résumé", "می\u200cروم", "میروم"]
    assert len({query_key(text) for text in texts}) == len(texts)


def test_keys_that_adapters_recorded_still_hold():
    """As `training.json` of earlier adapters has them."""
    assert query_key("  What did you see on Day 1, Élise? 你好 ") == "fcc318e3b066befd2a4c6439"
    assert query_key("Straße\tund Weg") == "cc79e2cf5b240f4092df85f7"


@pytest.mark.parametrize("queries", [[], ["a"], ["a", "A "], ["a", "b"]])
def test_too_few_queries(queries):
    with pytest.raises(ValueError, match="at least two different"):
        split_queries(queries, ["b"])


def test_validation_queries_that_are_the_test():
    with pytest.raises(ValueError, match="There is no validation query that is not"):
        split_queries(["a", "b", "c"], ["d"], validation_queries=["D "])


def test_passages(tiny_tokenizer, tmp_path):
    texts = ["word " * 200, "word " * 200, "short", "<|im_start|> " * 30]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    ids = passages(load_corpus(tmp_path / "c.jsonl"), tiny_tokenizer, min_length=20, max_length=50)
    assert [len(p) for p in ids] == [50, 50]  # the duplicate and the short one are gone
    assert 1 not in ids[1]  # a special token's spelling is text
    with pytest.raises(ValueError, match=r"longest has 2\).*lower min_passage_length \(--min-passage-length\)"):
        passages(["short", "very short"], tiny_tokenizer, min_length=3)

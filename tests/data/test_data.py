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
def test_splits_are_disjoint_and_lose_nothing(seed):
    queries = [f"Query {i % 60}" for i in range(100)] + ["query   7 ", "QUERY 8"]
    test = ["query 3", "Query 5", "Query  5", "Other"]
    splits = split_queries(queries, test, seed=seed)
    sides = [{query_key(q) for q in side} for side in (splits.train, splits.validation, splits.test)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert sides[0] | sides[1] | sides[2] == {query_key(q) for q in queries + test}
    assert [len(s) for s in sides] == [len(splits.train), len(splits.validation), len(splits.test)]
    assert splits.test == ["query 3", "Query 5", "Other"]
    assert splits.num_duplicates == len(queries) + len(test) - sum(map(len, sides))
    again = split_queries(queries, test, seed=seed)
    assert (again.train, again.validation) == (splits.train, splits.validation)


def test_a_dialogue_is_not_its_text():
    assert query_key([{"role": "user", "content": "a"}]) != query_key("a")
    assert query_key("A  b\n") == query_key("a B")


@pytest.mark.parametrize("queries", [[], ["a"], ["a", "A "], ["a", "b"]])
def test_too_few_queries(queries):
    with pytest.raises(ValueError, match="at least two different"):
        split_queries(queries, ["b"])


def test_passages(smollm2_tokenizer, tmp_path):
    texts = ["word " * 200, "word " * 200, "short", "<|im_start|> " * 30]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    ids = passages(load_corpus(tmp_path / "c.jsonl"), smollm2_tokenizer, min_length=20, max_length=50)
    assert [len(p) for p in ids] == [50, 50]  # the duplicate and the short one are gone
    assert 1 not in ids[1]  # a special token's spelling is text

"""Damaged files of every kind end in queries that are texts or dialogues, or in one sentence that names the file."""

import json
import random

import pytest
from datasets import Dataset

from peft_be.data import load_corpus, load_queries, query_key, split_queries
from peft_be.evaluation.tasks import load_task
from peft_be.prompting import load_prompt
from peft_be.runs.manifest import load_manifest


ROWS = [
    {"question": f"Où est “{i}”?\n\u2028", "text": "word " * i, "final": str(i), "name": f"n{i}", "prompt": "p.txt"}
    for i in range(12)
]
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
# What breaks parsers: ends of lines, quotes, halves of characters, deep nesting, numbers that are none
PIECES = [b"\n", b"\r", b'"', b"\\", b"\\ud800", b"\xff", b"\xc3", b"\0", b"\xef\xbb\xbf", b"[" * 3000, b"{", b"}", b",", b"null",
          b"1e999", b"NaN", b"9" * 5000, b"\xe2\x80\xa8", b"\\u0000"]  # fmt: skip
READERS = {
    "queries": load_queries,
    "a field": lambda path: load_queries(path, "question"),
    "manifest": load_manifest,
    "corpus": load_corpus,
    "task": lambda path: load_task("gsm8k", path),
    "prompt": load_prompt,
}


def originals(folder):
    table = Dataset.from_list(ROWS)
    table.to_csv(folder / "q.csv", index=False)
    table.to_parquet(folder / "q.parquet")
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "q.json").write_text(json.dumps(ROWS, indent=1, ensure_ascii=False))
    (folder / "p.json").write_text(json.dumps(MESSAGES))
    (folder / "q.txt").write_text("".join(row["text"] + "\n" for row in ROWS))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def damaged(content, chance):
    start, end = sorted(chance.choices(range(len(content) + 1), k=2))
    piece = chance.choice(PIECES)
    kind = chance.randrange(5)
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[:start] + content[end:]
    if kind == 2:
        return content[:start] + piece + content[start:]
    if kind == 3:
        return content[:start] + bytes([chance.randrange(256)]) + content[start + 1 :]
    return content[:start] + content[start:end] * 2 + content[end:]


def read_all(path, name):
    """The queries of what could be read; each reader ends in what it promises, or in one sentence."""
    found = []
    for reader in READERS.values():
        try:
            read = reader(path)
        except ValueError as error:
            message = str(error)
            assert "\n" not in message and len(message) < 2000, message
            assert name in message or "of the task" in message, message
        else:
            found += read if reader in (READERS["queries"], READERS["a field"]) else []
    return found


@pytest.mark.parametrize("name", ["p.json", "q.csv", "q.json", "q.jsonl", "q.parquet", "q.txt"])
@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_files(tmp_path, name, count):
    content, chance = originals(tmp_path)[name], random.Random(count)
    path = tmp_path / name
    for _ in range(count):
        broken = damaged(content, chance)
        for _ in range(chance.randrange(3)):
            broken = damaged(broken, chance)
        path.write_bytes(broken)
        queries = read_all(path, name)
        json.dumps(queries).encode()
        assert all(query_key(query) for query in queries)
        if len(set(map(query_key, queries))) > 1:
            assert split_queries(queries).train

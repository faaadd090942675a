"""Queries from files and from Python: what the formats mean, and what is refused with the place where it stands."""

import io
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, Features, Value

from peft_be.data import as_queries, load_queries, query_dataset
from peft_be.prompting import load_prompt


TEXTS = ["What, when and where?", 'She said "no"', "Où est le café ?", "Line\none", "NA", "007"]
USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
DIALOGUE = [USER, ASSISTANT, {"role": "user", "content": "And now?"}]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parquet(columns, names):
    """The bytes of a Parquet table."""
    file = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], names=names), file)
    return file.getvalue()


def save(texts, path):
    """The texts in a file of the format that its suffix names, as other programs write it."""
    rows = [{"id": i, "question": text, "answer": "-"} for i, text in enumerate(texts)]
    table, suffix = Dataset.from_list(rows), path.suffix.lower()
    if suffix == ".parquet":
        table.to_parquet(path)
    elif suffix in (".csv", ".tsv"):
        table.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    elif suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    else:
        path.write_text(json_lines(rows))
    return path


@pytest.mark.parametrize(
    "name", ["q.jsonl", "Q.JSONL", "q.ndjson", "q.json", "Q.Json", "q.csv", "Q.CSV", "q.tsv", "q.parquet", "Q.PARQUET"]
)
def test_each_format_gives_the_same_queries(tmp_path, name):
    path = save(TEXTS, tmp_path / name)
    assert load_queries(path) == TEXTS
    assert load_queries(str(path), field="answer") == ["-"] * len(TEXTS)


@pytest.mark.parametrize(
    "name, content, queries",
    [
        ("Q.TXT", "a\n\n  b  \n", ["a", "b"]),
        ("q.txt", b"\xef\xbb\xbfa\r\nb\r\n", ["a", "b"]),
        ("q.txt", b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "b"]),  # two files, joined
        ("q.txt", "a\rb\r", ["a", "b"]),
        ("q.txt", "a\n\u200b\n \u2060 \n\xad\nb\n", ["a", "b"]),
        ("q.txt", "a\u2028b\nc\x85d\ne\x0cf\ng\x1ch\ni\x0bj", ["a\u2028b", "c\x85d", "e\x0cf", "g\x1ch", "i\x0bj"]),
        ("q.txt", "[1, 2] and {a}\nWhat is {x}?\nA question, in short\n", None),
        ("q.jsonl", b'\xef\xbb\xbf{"query": "a"}\n\xef\xbb\xbf{"query": "b"}', ["a", "b"]),
        ("q.jsonl", '{"query": "a\u2028b\x85c"}\n', ["a\u2028b\x85c"]),
        ("q.jsonl", '{"query": "a\\ud800b \\ud83d\\ude00"}\n', ["a\ufffdb \U0001f600"]),
        ("q.jsonl", '"a"\n{"prompt": "b"}\n[{"role": "user", "content": "Hi"}]\n', ["a", "b", [USER]]),
        ("q.json", '["a", {"question": "b"}, [{"role": "user", "content": "Hi"}]]', ["a", "b", [USER]]),
        ("q.json", '\n{"query": "a"}\n{"query": "b"}\n', ["a", "b"]),  # JSON lines under another name
        ("q.csv", b"\xef\xbb\xbfid, query\r\n1,a\r\n\r\n2,b\r\n,\r\n", ["a", "b"]),
        ("q.csv", 'query\n"a\u2028b\n\nc"\n', ["a\u2028b\n\nc"]),
        ("q.csv", 'query,text\na,"' + "x" * 200_000 + '"\n', ["a"]),
    ],
)
def test_files_as_the_world_writes_them(tmp_path, name, content, queries):
    expected = content.splitlines() if queries is None else queries
    assert load_queries(write(tmp_path / name, content)) == expected


@pytest.mark.parametrize(
    "name, content, message",
    [
        # Another kind of file than its name says, or of a kind that is not read
        ("q.xlsx", b"PK", "Cannot read the query file '.*q.xlsx': its name must end in .txt .* or in one of .jsonl"),
        ("q.jsonl.gz", b"\x1f\x8b", "Cannot read"),
        ("q", "a\n", "Cannot read"),
        ("q.md", "a\n", "Cannot read"),
        ("q.txt", '[\n  "a",\n  "b"\n]\n', "belongs into a .json file"),
        ("q.txt", '["a", "b"]\n', "belongs into a .json file"),
        ("q.txt", '{"query": "a"}\n{"query": "b"}\n', "belongs into a .jsonl file"),
        ("q.txt", "id,question\n1,a\n", "belongs into a .csv file"),
        ("q.txt", '"question";"answer"\na;b\n', "belongs into a .csv file"),
        ("q.txt", "question\tanswer\na\tb\n", "belongs into a .tsv file"),
        # Bytes that are no text
        ("q.txt", b"a\nb\ncaf\xe9\n", "Line 3 of the query file '.*q.txt' is not UTF-8"),
        ("q.txt", "a\n".encode("utf-16"), "Line 1 of .* is not UTF-8"),
        ("q.jsonl", b'{"query": "a"}\n\0\n', "Line 2 of .* holds NUL"),
        ("q.csv", b"query\n\xe9\n", "Line 2 of .* is not UTF-8"),
        ("q.json", b'["\xe9"]', "not UTF-8"),
        ("q.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
        ("q.parquet", b"", "cannot be read as Parquet"),
        # Damaged JSON and CSV
        ("q.jsonl", '{"query": "a"}\n{"query"\n', "Line 2 of .* is not JSON"),
        ("q.jsonl", '{"query": "a", "query": "b"}\n', "Line 1 of .* has the key 'query' twice"),
        ("q.jsonl", "[" * 100_000, "nested too deeply"),
        ("q.json", '["a", "b"', "query file '.*q.json' is not JSON"),
        ("q.json", '{"data": [\n"a"]}', "must be a list, and is an object"),
        ("q.csv", "query\nWhat, when?\n", "Line 2 of .* has 2 cells, and the first line names 1"),
        ("q.csv", 'query\n"a" b\n', "Line 2 of .* is no row of a table"),
        ("q.csv", 'query\na\n"b\nc\n', "Line 3 of .* is no row of a table"),
        ("q.csv", "query,query\na,b\n", "more than one column 'query'"),
        ("q.parquet", parquet([["a"], ["b"]], ["query", "query"]), "more than one column 'query'"),
        # Other separators
        ("q.csv", "query;answer\na;b\n", "first line of .* is 'query;answer' .*separated by commas"),
        ("q.csv", "id\tquery\n1\ta, b\n", "first line of .* names no columns"),
        ("q.csv", "sep=,\nquery,id\na,1\n", "first line of .* is 'sep=,'"),
        ("q.tsv", "query,answer\na,b\n", "those of .tsv by tabs"),
        # Tables that are called texts
        ("q.txt", "Query,Answer\na,b\n", "belongs into a .csv file"),
        ("q.txt", "Question\na\n", "first line of .* is 'Question'.*name of a column"),
        # Nothing in it
        ("q.txt", "\ufeff\n \n", "holds no queries"),
        ("q.jsonl", "", "holds no queries"),
        ("q.json", "[]", "holds no queries"),
        ("q.csv", "query\n", "holds no queries"),
        # Rows without a query
        ("q.jsonl", '{"query": "a"}\n{"text": "b"}\n', "Line 2 of .* has no query: it needs one of .*, and has text"),
        ("q.jsonl", '{"query": null, "prompt": "  "}\n', "Line 1 of .* has no query"),
        ("q.jsonl", '{"query": 5}\n', "The query in line 1 of .* must be a text .* of type int"),
        ("q.jsonl", '{"query": true}\n', "of type bool"),
        ("q.jsonl", '{"query": {"text": "a"}}\n', "of type dict"),
        ("q.jsonl", '"a"\n5\n', "The query in line 2 of .* of type int"),
        ("q.json", '["a", null]', "The query in item 2 of .* of type NoneType"),
        ("q.json", '["a", " "]', "The query in item 2 of .* is empty"),
        ("q.json", '[{"role": "user", "content": "Hi"}]', "Item 1 of .* is a chat message: put the messages"),
        ("q.csv", "id,query\n1,a\n2,\n", "Line 3 of .* has no query: there is nothing in query"),
        ("q.jsonl", '{"query": "\\u200d"}\n', "Line 1 of .* has no query"),
        # Rows with several
        ("q.jsonl", '{"query": "a"}\n{"prompt": "b", "question": "c"}\n', "Line 2 of .* several .*: prompt, question"),
        ("q.jsonl", '{"question": "a", "input": "b"}\n', "several fields .*: question, input.* --query-field"),
        ("q.jsonl", '{"question": "a", "context": "b"}\n', "'context' next to 'question'.*dropped.* --query-field"),
        ("q.csv", "system,query\na,b\n", "'system' next to 'query'"),
        ("q.csv", "question,System Prompt\na,b\n", "'System Prompt' next to 'question'"),
        ("q.jsonl", '{"question": "a", "choices": {"text": ["b"]}}\n', "'choices' next to 'question'"),
        ("q.jsonl", '{"instruction": "a", "input": "", "history": [["b", "c"]]}\n', "'history' next to 'instruction'"),
        ("q.csv", "prompt,question\na,b\n", "Line 2 of .* several fields .*: prompt, question"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as error:
        load_queries(path)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_paths_that_are_no_file(tmp_path):
    for name in ("q.txt", "q.jsonl", "q.json", "q.csv", "q.parquet"):
        with pytest.raises(FileNotFoundError, match="There is no query file"):
            load_queries(tmp_path / name)
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match="is a folder"):
            load_queries(tmp_path / name)


@pytest.mark.parametrize(
    "messages, problem",
    [
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "message 1 must be text, and is a list of parts"),
        ([USER, {**ASSISTANT, "tool_calls": [{}]}, USER], "message 2 has the key 'tool_calls'"),
        ([USER, {"role": "tool", "content": "4"}, USER], "message 2 has the role 'tool'"),
        ([{"role": "system", "content": "Be brief."}, USER], "starts with a system message"),
        ([USER, {"role": "system", "content": "Be brief."}, USER], "message 2 is a system message"),
        ([USER, ASSISTANT], "must end in a user message: leave the answer out"),
        ([{"role": "user"}], "message 1 must be an object with 'role' and 'content'"),
        ([{"from": "human", "value": "Hi"}], "message 1 must be an object with 'role' and 'content'"),
        ([{"role": "user", "content": None}], "message 1 must be text, and is NoneType"),
        ([{"role": "user", "content": " "}], "is empty"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", ["query", "messages"])
def test_dialogues_are_checked_where_they_are_read(tmp_path, field, messages, problem):
    path = write(tmp_path / "q.jsonl", json_lines([{field: "a"}, {field: messages}]))
    with pytest.raises(ValueError, match=f"The query in line 2 of '.*q.jsonl'.*{problem}"):
        load_queries(path)
    with pytest.raises(ValueError, match=f"The query in row 2 of the queries.*{problem}"):
        as_queries(["a", messages])


def test_an_instruction_and_its_input_are_one_query(tmp_path):
    rows = [{"instruction": "Translate.", "input": "Hund", "output": "dog"}, {"instruction": "Rhyme.", "input": ""}]
    expected = ["Translate.\n\nHund", "Rhyme."]
    assert load_queries(write(tmp_path / "q.json", json.dumps(rows))) == expected
    assert as_queries(rows) == as_queries(Dataset.from_list(rows)) == expected
    assert as_queries(rows, "instruction") == ["Translate.", "Rhyme."]
    with pytest.raises(ValueError, match="Row 2 of the queries has nothing in the field 'input'"):
        as_queries(rows, "input")


def test_a_field_can_be_named(tmp_path):
    rows = [{"prompt": "You are a pirate.", "question": "Who are you?", "text": "a"}]
    path = write(tmp_path / "q.jsonl", json_lines(rows))
    assert load_queries(path, "question") == as_queries(rows, field="question") == ["Who are you?"]
    assert load_queries(path, "text") == ["a"]
    with pytest.raises(ValueError, match="Line 1 of .* nothing in the field 'query'; it has prompt, question, text"):
        load_queries(path, "query")
    with pytest.raises(ValueError, match="Row 1 of the queries is no object with a field 'question'"):
        as_queries(["a"], "question")
    with pytest.raises(ValueError, match="q.txt' has one query a line and no field 'question'"):
        load_queries(write(tmp_path / "q.txt", "a\nb\n"), "question")


def test_sources_of_queries_in_python():
    texts = ["a", "b"]
    rows = [{"question": text, "other": None} for text in texts]
    dataset = Dataset.from_list(rows)
    sources = [texts, tuple(texts), iter(texts), (text for text in texts), dict.fromkeys(texts).keys(), rows, dataset]
    sources += [dataset["question"], dataset.to_iterable_dataset(), dataset.with_format("numpy"), iter(rows)]
    for source in sources:
        assert as_queries(source) == texts, source
    padded = Dataset.from_list([{"messages": DIALOGUE, "name": "a"}])
    assert as_queries(padded) == as_queries([DIALOGUE]) == as_queries([tuple(DIALOGUE)]) == [DIALOGUE]
    frame = Dataset.from_dict({"messages": [[{**message, "name": None} for message in DIALOGUE]]})
    assert as_queries(frame) == [DIALOGUE]
    assert as_queries([]) == []
    assert as_queries(["a\ud800"]) == ["a\ufffd"]


@pytest.mark.parametrize(
    "source, message",
    [
        ("queries.txt", "not a single text; read a file with peft_be.load_queries"),
        (b"a", "not a single text"),
        ({"query": ["a", "b"]}, "not an object with query"),
        (DatasetDict({"train": Dataset.from_dict({"query": ["a"]})}), "not an object with train"),
        (Dataset.from_dict({"query": ["a"]}).to_pandas(), "Dataset.from_pandas"),
        ({"a", "b"}, "an order, and not a set"),
        (io.StringIO("a\n"), "read a file with peft_be.load_queries"),
        (Dataset.from_dict({"question": ["a"], "Passage": ["b"]}), "'Passage' next to 'question'"),
        (5, "not a int"),
        (None, "not a NoneType"),
        (["a", 5], "The query in row 2 of the queries must be a text .* of type int"),
        (["a", ""], "row 2 of the queries is empty"),
        ([{"query": "a"}, {"prompt": "b", "question": "c"}], "Row 2 of the queries has several fields"),
        ([{"question": float("nan")}], "Row 1 of the queries has no query"),
        (Dataset.from_dict({"question": ["a", None]}), "Row 2 of the queries has no query"),
        (Dataset.from_dict({"text": ["a"]}), "Row 1 of the queries has no query.* and has text"),
        (Dataset.from_dict({"query": [1.0]}, features=Features({"query": Value("float32")})), "of type float"),
    ],
)
def test_sources_that_are_no_queries(source, message):
    with pytest.raises(ValueError, match=message):
        as_queries(source)


@pytest.mark.parametrize("kind", ["numpy", "pandas", "arrow", "torch"])
@pytest.mark.parametrize("streamed", [False, True])
def test_data_sets_with_a_format(kind, streamed):
    source = Dataset.from_dict({"messages": [DIALOGUE], "answer": [[1, 2]]})
    source = (source.to_iterable_dataset() if streamed else source).with_format(kind)
    assert as_queries(source) == [DIALOGUE]
    assert query_dataset(source)["answer"][:] == [[1, 2]]


def test_queries_to_train_on():
    assert query_dataset(["a", DIALOGUE])["query"][:] == [[{"role": "user", "content": "a"}], DIALOGUE]
    rows = [{"question": "a", "answer": "b", "level": 3}, {"question": "c", "answer": None}]
    for source in (rows, iter(rows), Dataset.from_list(rows)):
        assert query_dataset(source).to_dict() == {"query": ["a", "c"], "answer": ["b", None]}
    both = Dataset.from_dict({"query": ["a"], "prompt": ["system text"], "prompt_name": ["one"]})
    assert query_dataset(both).to_dict() == {"query": ["a"], "prompt_name": ["one"]}
    with pytest.raises(ValueError, match="Row 2 of the queries has nothing in the field 'query'"):
        query_dataset([{"query": "a"}, {"question": "b"}])


def test_large_files_stay_within_bounds(tmp_path):
    """Other columns than the query's are not kept."""
    path = write(
        tmp_path / "q.jsonl",
        json_lines([{"query": "a", "text": "x" * 10_000}] * 5_000 + [{"query": "y" * 4 * 10**6, "text": "z" * 10**7}]),
    )
    tracemalloc.start()
    queries = load_queries(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(queries) == 5_001 and len(queries[-1]) == 4 * 10**6
    assert peak < 60e6 < 2 * path.stat().st_size


def test_a_text_that_fits_no_model_is_refused(tmp_path):
    """Where it stands, and before its tokens are counted, which takes minutes."""
    long = "word " * 2_000_000
    with pytest.raises(ValueError, match="The query in line 2 of .*q.txt': message 1 has 9,999,999 characters"):
        load_queries(write(tmp_path / "q.txt", f"a\n{long}\n"))
    with pytest.raises(ValueError, match="row 2 of the queries: message 2 has 10,000,000 characters"):
        as_queries(["a", [USER, {**ASSISTANT, "content": long}, USER]])
    with pytest.raises(ValueError, match="p.txt': message 1 has 10,000,000 characters"):
        load_prompt(write(tmp_path / "p.txt", long))


def test_a_line_that_no_memory_holds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("peft_be.files.MAX_LINE", 1000)
    with pytest.raises(ValueError, match="Line 2 of .* has more than 1,000 bytes"):
        load_queries(write(tmp_path / "q.txt", "a\n" + "b" * 1001))
    monkeypatch.setattr("peft_be.files.MAX_SIZE", 1000)
    assert load_queries(write(tmp_path / "p.json", json.dumps(["b" * 900]))) == ["b" * 900]
    with pytest.raises(ValueError, match="has 1,006 bytes, and at most 1,000 can be read"):
        load_queries(write(tmp_path / "q.json", '["' + "b" * 1002 + '"]'))

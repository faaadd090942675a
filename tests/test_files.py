"""The one reader of text files: what it takes as it is, and what it refuses by name."""

import pytest

from peft_be.files import parse_json, read_json, read_json_lines, read_text, write_json


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_text(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read_text(file, "file") == "one\ntwo\n"


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c", "\x1c", "\x0b"])
def test_a_line_separator_inside_a_json_string_does_not_end_the_line(tmp_path, separator):
    file = tmp_path / "a.jsonl"
    file.write_text(
        f'{{"query": "a{separator}b"}}\n'.replace("\x0c", "\\f").replace("\x1c", "\\u001c").replace("\x0b", "\\u000b")
    )
    assert [row for _, row in read_json_lines(file, "file")] == [{"query": f"a{separator}b"}]


def test_a_lone_surrogate_becomes_a_character_that_can_be_written():
    assert parse_json('{"a": ["\\ud800 \\ud83d\\ude00"]}', "it") == {"a": ["\ufffd \U0001f600"]}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\xff\xfe", "The file '.*' is not UTF-8 text"),
        (b"a\0b", "holds NUL"),
        (b"{", "The file '.*' is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "must be an object, and is a list"),
        (b"null", "must be an object, and is null"),
        (b"1" * 5000, "is not JSON"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(file, "file", dict)


def test_a_line_that_is_no_object_is_named_by_its_number(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n"b"\n')
    with pytest.raises(ValueError, match="Line 3 of '.*a.jsonl' must be an object, and is a text"):
        list(read_json_lines(file, "file"))


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no query file"):
        read_text(tmp_path / "a", "query file")
    with pytest.raises(ValueError, match="is a folder"):
        read_text(tmp_path, "query file")


def test_what_was_written_is_read_again(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, None]})
    assert read_json(tmp_path / "a.json", "file", dict) == {"é": [1, None]}

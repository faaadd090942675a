import json

import pytest

from peft_be.prompting import load_prompt
from peft_be.prompting.messages import check_prompt


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
]


@pytest.mark.parametrize(
    "content, prompt",
    [
        ("Be brief.\n", "Be brief."),
        ("Be brief.", "Be brief."),
        ("\n  Be\n\nbrief. \n\n", "\n  Be\n\nbrief. \n"),
        ("Be\r\nbrief.\r\n", "Be\nbrief."),
        ("Be\u2028brief.\x85\x0cNow.", "Be\u2028brief.\x85\x0cNow."),
        ("[Be brief.]", "[Be brief.]"),
        ("\ufeffSoyez bref, élève 你好.\n", "Soyez bref, élève 你好."),
    ],
)
def test_text(tmp_path, content, prompt):
    path = tmp_path / "P.txt"
    path.write_bytes(content.encode())
    assert load_prompt(path) == prompt
    assert load_prompt(str(path)) == prompt


def test_json(tmp_path):
    path = tmp_path / "P.JSON"
    path.write_text(json.dumps(MESSAGES), encoding="utf-8")
    assert load_prompt(path) == MESSAGES
    path.write_text(json.dumps([{**message, "name": None} for message in MESSAGES]), encoding="utf-8")
    assert load_prompt(path) == MESSAGES
    path.write_text(json.dumps(MESSAGES[:1]), encoding="utf-8")
    assert load_prompt(path) == MESSAGES[:1]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("P.txt", b"", "is empty"),
        ("P.txt", b" \n\t\n", "is empty"),
        ("P.txt", "\u200b\u2060\n".encode(), "is empty"),
        ("P.txt", b"caf\xe9", r"is not UTF-8 text \(byte 3\)"),
        ("P.txt", b"\xff\xfeP\x00", r"is not UTF-8 text \(byte 0\)"),
        ("P.md", b"x", "pass a .txt file with the system prompt or a .json file"),
        ("P", b"x", "pass a .txt file"),
        ("P.json", b"", "is empty"),
        ("P.json", b"[", "is not JSON"),
        ("P.json", b"[" * 100_000, "is nested too deeply"),
        ("P.txt", json.dumps(MESSAGES).encode(), "holds chat messages in JSON: rename it to .json"),
        ("P.txt", b"a\0b", "holds NUL characters"),
        ("P.json", b'[{"role": "system", "role": "user", "content": "x"}]', "has the key 'role' twice"),
        ("P.json", b'"Be brief."', "save the text as a .txt file"),
        ("P.json", b"{}", "must be a non-empty list"),
        ("P.json", b"[]", "must be a non-empty list"),
        ("P.json", b"null", "must be a non-empty list"),
        ("P.json", b'["x"]', "message 1 must be an object with 'role' and 'content'"),
        ("P.json", b'[{"role": "system"}]', "message 1 must be an object with 'role' and 'content'"),
        ("P.json", b'[{"role": "tool", "content": "x"}]', "message 1 has the role 'tool'; use 'system'"),
        ("P.json", b'[{"role": ["system"], "content": "x"}]', "message 1 has the role"),
        ("P.json", b'[{"role": "system", "content": 1}]', "the content of message 1 must be text"),
        ("P.json", b'[{"role": "system", "content": "x", "tool_calls": []}]', "has the key 'tool_calls'"),
        ("P.json", b'[{"role": "system", "content": " "}]', "is empty"),
        ("P.json", json.dumps(MESSAGES[:2]).encode(), "ends in a user message"),
        ("P.json", json.dumps(MESSAGES[1:] + MESSAGES[:1]).encode(), "message 3 is a system message"),
    ],
)
def test_errors(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_prompt(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no prompt file"):
        load_prompt(tmp_path / "P.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        load_prompt(tmp_path / "folder.txt")


def test_a_path_is_no_prompt(tmp_path):
    path = tmp_path / "P.TXT"
    text = f"Read {path}"
    assert check_prompt(str(path)) == [{"role": "system", "content": str(path)}]  # nothing is there: it may be a text
    path.write_text("Be brief.")
    for given in (path, str(path)):
        with pytest.raises(ValueError, match=r"The prompt is the path '.*P\.TXT' .*load_prompt"):
            check_prompt(given)
    assert check_prompt(text) == [{"role": "system", "content": text}]
    assert check_prompt(str(tmp_path))[0]["content"] == str(tmp_path)

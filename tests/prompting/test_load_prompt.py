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
        ("P.rst", b"x", "pass a .txt or .md file with the system prompt, a .json file"),
        ("P", b"x", "pass a .txt or .md file"),
        ("P.md", b"", "is empty"),
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
    with pytest.raises(ValueError, match="skill', which does not exist: pass a .txt"):
        load_prompt(tmp_path / "skill")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        load_prompt(tmp_path / "folder.txt")


def test_markdown_is_text_as_it_stands(tmp_path):
    (tmp_path / "P.md").write_text("# You\n\nRead [more](more.md).\n")
    assert load_prompt(tmp_path / "P.md") == "# You\n\nRead [more](more.md)."


@pytest.fixture
def skill(tmp_path):
    """Makes a skill of files, by name."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / "skill" / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "skill"

    return write


@pytest.mark.filterwarnings("ignore:The prompt is without other.md")
def test_a_skill_is_what_its_files_link(skill):
    main = '---\nname: forms\n---\n\nRead [fields](refs/fields.md#dates), [the same](./refs/fields.md) and [rules](rules.md "all").\n'
    folder = skill(
        SKILL_md=main,
        rules_md="\nBack to [the start](SKILL.md).\n",
        refs__fields_md="See [more](../refs/more%20here.md).\n\n",
        other_md="Nobody links this.",
    )
    (folder / "refs" / "more here.md").write_text("The end.\n")
    assert load_prompt(folder) == "\n\n".join(
        [
            main.strip("\n"),
            "## refs/fields.md\n\nSee [more](../refs/more%20here.md).",
            "## rules.md\n\nBack to [the start](SKILL.md).",
            "## refs/more here.md\n\nThe end.",
        ]
    )


@pytest.mark.parametrize(
    "link",
    [
        "[a page](https://example.org/a.md)",
        "[a script](scripts/run.py)",
        "![a picture](picture.md)",
        "[a section](#part.md)",
        "`[code](missing.md)`",
        "```\n[code](missing.md)\n```",
        "[mail](mailto:a@b.md)",
        "[docs](https://[your-domain]/docs.md)",
        "1. Run\n\n   ```\n   [code](missing.md)\n   ```",
        "````\n```\n[code](missing.md)\n```\n````",
    ],
)
def test_links_that_stay_links(skill, link):
    assert load_prompt(skill(SKILL_md=f"See\n{link}\n")) == f"See\n{link}"


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("[a](SKILL.md/loop.md)", FileNotFoundError, "links to 'SKILL.md/loop.md', which does not exist"),
        (f"[a]({300 * 'a'}.md)", FileNotFoundError, "which does not exist"),
        ("[a](b%00.md)", FileNotFoundError, "which does not exist"),
        ("[a](no.md)", FileNotFoundError, "SKILL.md' links to 'no.md', which does not exist"),
        ("[a](../P.md)", ValueError, "links to '../P.md', which is not in the skill's folder"),
        ("[a](/etc/P.md)", ValueError, "links to '/etc/P.md', which is not in the skill's folder"),
        (" \n", ValueError, "is empty"),
    ],
)
def test_skills_that_cannot_be(skill, tmp_path, text, error, message):
    (tmp_path / "P.md").write_text("Secret.")
    with pytest.raises(error, match=message):
        load_prompt(skill(SKILL_md=text))


def test_links_of_every_form(skill):
    folder = skill(
        SKILL_md="[a][1], [b](<b.md>), [![c](c.png)](c.md) and [d [e]](d.md#part)\n\n[1]: a.md",
        **{f"{name}_md": name.upper() for name in "abcd"},
    )
    assert load_prompt(folder / "SKILL.md") == load_prompt(folder)
    assert load_prompt(folder).endswith("## a.md\n\nA\n\n## b.md\n\nB\n\n## c.md\n\nC\n\n## d.md\n\nD")


def test_what_nothing_links_to_is_told(skill):
    folder = skill(SKILL_md="See REFERENCE.md.", REFERENCE_md="The rules.", a__b_md="More.")
    with pytest.warns(
        UserWarning, match=r"The prompt is without REFERENCE\.md, a/b\.md: nothing in the skill links there"
    ):
        assert load_prompt(folder) == "See REFERENCE.md."


def test_a_skill_reads_nothing_outside_its_folder(skill, tmp_path):
    folder = skill(SKILL_md="[a](a.md)")
    (tmp_path / "secret.md").write_text("Secret.")
    (folder / "a.md").symlink_to(tmp_path / "secret.md")
    with pytest.raises(ValueError, match="not in the skill's folder"):
        load_prompt(folder)
    (folder / "a.md").unlink()
    (folder / "a.md").symlink_to(folder / "a.md")
    with pytest.raises(FileNotFoundError, match="links to 'a.md', which does not exist"):
        load_prompt(folder)


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
    (tmp_path / "SKILL.md").write_text("Be brief.")
    with pytest.raises(ValueError, match="is the path"):
        check_prompt(str(tmp_path))

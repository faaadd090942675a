"""Links in the documentation lead somewhere, and its commands and imports exist."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from .doc_blocks import PAGES, PYTHON, ROOT, SHELL, blocks, commands


FENCES = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCES.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCES.sub("", page.read_text())):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_merge_is_left_open(page):
    assert not re.search(r"^(<<<<<<<|>>>>>>>) ", page.read_text(), re.MULTILINE)


def messages() -> list[str]:
    """All texts in the package's code, with `...` for what they fill in."""
    texts = []
    for file in (ROOT / "peft_be").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(str(p.value) if isinstance(p, ast.Constant) else "..." for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_the_messages_in_troubleshooting_are_ours():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)
    quoted = [text for row in rows if "(PEFT's)" not in row for text in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 50
    known = messages()
    for text in quoted:
        pieces = [piece.strip(" '") for piece in text.split("...") if len(piece.strip(" '")) > 3]
        assert any(all(piece in message for piece in pieces) for message in known), text


def test_commands_have_the_options_that_the_pages_give_them():
    from typer.main import get_command

    from peft_be.cli.main import app

    known, seen = get_command(app).commands, 0
    for block in blocks(*SHELL):
        for line in commands(block.code):
            if re.match(r"(\S*/)?peft-be [a-z]", line):
                name, *arguments = shlex.split(line, comments=True)[1:]
                # Refuses unknown options, and values of the wrong type
                with known[name].make_context(name, arguments):
                    seen += 1
    assert seen > 30


def test_python_blocks_import_what_is_there():
    seen = 0
    for page, _, code in blocks(*PYTHON):
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "peft_be":
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), (page, node.module)
                seen += 1
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "peft_be":
                assert hasattr(importlib.import_module("peft_be"), node.attr), (page, node.attr)
                seen += 1
    assert seen > 10

"""Docstrings as PEFT and TRL write them, for mkdocstrings: [`Name`] is a link to a public name, or code."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent

import griffe


sys.path.insert(0, str(Path(__file__).parent))

from pages import public_names  # noqa: E402


REFERENCE = re.compile(r"\[`~?([\w.]+)`\]")
# `name (type, *optional*, defaults to `x`):`; the default is in the signature, too
ARGUMENT = re.compile(r"^( +\*{0,2}\w+ )\(([^)\n]+)\):", re.MULTILINE)
# `type: what is returned or raised`
RESULT = re.compile(r"^( +)`([\w.\[\], ]+)`: ", re.MULTILINE)
# An example that is indented under its title, which Markdown would show with its fence
EXAMPLE = re.compile(r"^( +)```py(?:thon)?\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def plain_type(written: str) -> str:
    """The type of an argument without its markup, which mkdocstrings shows as it is."""
    return re.sub(r"[`*]|, defaults to .*", "", REFERENCE.sub(r"\1", written))


class References(griffe.Extension):
    def __init__(self):
        self.public = set(public_names())

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            text = ARGUMENT.sub(lambda m: f"{m[1]}({plain_type(m[2])}):", obj.docstring.value)
            text = EXAMPLE.sub(lambda m: f"```python\n{dedent(m[2])}```", text)
            obj.docstring.value = REFERENCE.sub(self.rewritten, RESULT.sub(r"\1\2: ", text))

    def rewritten(self, match: re.Match) -> str:
        name = match[1].rpartition(".")[2]
        return f"[`{name}`][peft_be.{name}]" if name in self.public else f"`{name}`"

"""Docstrings as PEFT and TRL write them, for mkdocstrings: [`Name`] is a link to a public name, or code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import griffe


sys.path.insert(0, str(Path(__file__).parent))

from pages import public_names  # noqa: E402


REFERENCE = re.compile(r"\[`~?([\w.]+)`\]")


class References(griffe.Extension):
    def __init__(self):
        self.public = set(public_names())

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = REFERENCE.sub(self.rewritten, obj.docstring.value)

    def rewritten(self, match: re.Match) -> str:
        name = match[1].rpartition(".")[2]
        return f"[`{name}`][peft_be.{name}]" if name in self.public else f"`{name}`"

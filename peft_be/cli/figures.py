"""Where commands leave their figures, besides the screen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..recipe import setting
from .common import check_card_file, check_json_file


@dataclass
class Figures:
    """The options of commands that score an adapter."""

    json: Path | None = setting(None, "Write the figures to this file.")
    card: bool = setting(False, "Write the figures into the metadata of the adapter's card.")

    def __post_init__(self):
        check_json_file(self.json)

    def check_card(self, directory: Path) -> None:
        if self.card:
            check_card_file(directory)

    def write(self, figures: dict) -> None:
        from ..files import write_json

        if self.json is not None:
            write_json(self.json, figures)

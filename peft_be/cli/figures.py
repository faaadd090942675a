"""Where commands leave their figures, besides the screen."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..recipe import setting


@dataclass
class Figures:
    """The options of commands that score an adapter."""

    json: Path | None = setting(None, "Write the figures to this file.")
    card: bool = setting(False, "Write the figures into the metadata of the adapter's card.")

    def __post_init__(self):
        """Refuse a file that cannot be written, before the work that fills it."""
        if self.json is None:
            return
        folder = self.json.absolute().parent
        if not folder.is_dir():
            raise FileNotFoundError(f"The folder of '{self.json}' does not exist: create it first.")
        if self.json.is_dir():
            raise ValueError(f"--json '{self.json}' is a folder: give the name of a file.")
        if not os.access(self.json if self.json.exists() else folder, os.W_OK):
            raise ValueError(f"--json '{self.json}' cannot be written: check the permissions, or give another file.")

    def check_card(self, directory: Path) -> None:
        """Refuse an adapter without a card, before the work whose figures the card is to show."""
        if self.card and not (directory / "README.md").is_file():
            raise FileNotFoundError(
                f"There is no card (README.md) in '{directory}' to write the figures into: leave out --card."
            )

    def write(self, figures: dict) -> None:
        from ..files import write_json

        if self.json is not None:
            write_json(self.json, figures)

from __future__ import annotations

import re
from dataclasses import dataclass

from .kinds import Test


@dataclass(frozen=True)
class AnswerCheck:
    """
    A named check of answers, as [`load_checks`] reads it.

    Args:
        name (`str`): what the check is called in tables and cards.
        tests (`tuple[Callable[[str], bool], ...]`): what an answer must pass, all of them.
        when (`re.Pattern`, *optional*): the check applies to queries in which this is found. `None` applies it to all.
        min_pass_rate (`float`, *optional*): the least share of [BE]'s answers that must pass, between 0 and 1.
        rules (`str`, *optional*): what its file says, as JSON. A comparison that is resumed knows it again by its name and this.
    """

    name: str
    tests: tuple[Test, ...]
    when: re.Pattern | None = None
    min_pass_rate: float | None = None
    rules: str = ""

    def applies_to(self, query: str | list[dict[str, str]]) -> bool:
        """Whether a query is one that the check is for. Of a conversation, `when` reads the last message."""
        text = query if isinstance(query, str) else query[-1]["content"]
        return self.when is None or self.when.search(text) is not None

    def passes(self, answer: str) -> bool:
        """Whether an answer passes. White space at its ends is not looked at."""
        return all(test(answer.strip()) for test in self.tests)

"""BIG-Bench Hard: exact match of the final answer."""

from __future__ import annotations

import re

from .task import AnswerTask


class BBH(AnswerTask):
    """
    Items have a `question` and a `final` answer (or `target`). Each of the tasks of BIG-Bench Hard has its own prompt, so take the
    items of one.

    Metric: `exact_match` of what follows the first "the answer is" ("So the answer is (B).") on its line, without the full
    stop at its end. The lm-evaluation-harness always leaves out that line's last character, even where it is no full
    stop, and is wrong there.
    """

    template = "Q: {question}\nA: Let's think step by step."
    reference_fields = ("final", "target")
    max_answer_length = 512
    stop = ("Q:",)

    def item_scores(self, answers: list[str]) -> dict[str, list[float]]:
        found = [re.search(r"[Tt]he answer is (.*)", answer) for answer in answers]
        given = [match[1].strip().removesuffix(".").strip() if match else None for match in found]
        return {"exact_match": [float(text == str(right).strip()) for text, right in zip(given, self.references)]}

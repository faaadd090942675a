"""Grade-school arithmetic (GSM8K, SVAMP): exact match of the final number."""

from __future__ import annotations

import re

from .task import AnswerTask


# Both patterns, and what is taken off a number, are as in the lm-evaluation-harness (gsm8k, gsm8k_cot), so that the
# scores are the same
_LAST_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_STRICT = re.compile(r"The (?:final )?answer is \$?(-?[0-9.,]+)")


class GSM8K(AnswerTask):
    """
    Items have a `question`, and a number as `final`, or a solution that ends in `#### number` as `answer`.

    Metrics: `flexible`, the score, is the last number of the answer, and `strict` the number after "The answer is" or
    "The final answer is"; each is 1 where it is the reference without `$`, commas and a full stop at the end.
    """

    max_answer_length = 320
    stop = ("Question:",)

    def item_scores(self, answers: list[str]) -> dict[str, list[float]]:
        scores: dict[str, list[float]] = {"flexible": [], "strict": []}
        for answer, reference in zip(answers, self.references):
            right = _number(str(reference).split("#### ")[-1])
            numbers, strict = _LAST_NUMBER.findall(answer), _STRICT.search(answer)
            scores["flexible"].append(float(bool(numbers) and _number(numbers[-1]) == right))
            scores["strict"].append(float(strict is not None and _number(strict[1]) == right))
        return scores


def _number(text: str) -> str:
    return re.sub(r"[,$]", "", text.strip()).removesuffix(".")

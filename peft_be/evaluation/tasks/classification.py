"""Classification with a prompt of worked examples: exact match of the label."""

from __future__ import annotations

from .task import AnswerTask


class Classification(AnswerTask):
    """
    Items have a text as `question` and a `label`.

    Metric: `exact_match` of the answer's first line, without a full stop at its end and without regard to letter case.
    """

    reference_fields = ("label",)
    max_answer_length = 32

    def item_scores(self, answers: list[str]) -> dict[str, list[float]]:
        pairs = zip(answers, self.references)
        return {"exact_match": [float(_label(answer) == _label(str(right))) for answer, right in pairs]}


def _label(text: str) -> str:
    return text.strip().partition("\n")[0].strip().removesuffix(".").casefold()

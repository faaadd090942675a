"""RoleBench: ROUGE-L of a role's answers against the benchmark's."""

from __future__ import annotations

from rouge_score.rouge_scorer import RougeScorer

from .task import AnswerTask


class RoleBench(AnswerTask):
    """
    Items have a `question` and a list of `references`. Each role has its own prompt, so take the items of one.

    Metric: `rouge_l`, the F score against the reference that is the closest. The paper's appendix C finds that it can fall
    while a judge's win rate rises: see [`RoleBenchJudge`].
    """

    reference_fields = ("references",)
    reference_types = (list,)
    max_answer_length = 128

    def item_scores(self, answers: list[str]) -> dict[str, list[float]]:
        rouge = RougeScorer(["rougeL"])
        pairs = zip(self.references, answers)
        return {"rouge_l": [rouge.score_multi(right, answer)["rougeL"].fmeasure for right, answer in pairs]}

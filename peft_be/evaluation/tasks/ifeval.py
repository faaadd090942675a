"""IFEval: instructions that a rule can check, by the rules of the lm-evaluation-harness."""

from __future__ import annotations

import os
from unittest import mock

from .task import AnswerTask


# These rules split texts with data that nltk downloads separately
_NLTK_RULES = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}


class IFEval(AnswerTask):
    """
    Items have a `prompt`, an `instruction_id_list` and a list `kwargs` of each rule's arguments.

    Metrics: the shares of items with all rules followed (`prompt_strict`, the score, and `prompt_loose`, which also tries the
    answer without its first or last line and without asterisks), and an item's share of followed rules
    (`instruction_strict`, `instruction_loose`), as a mean over items, where the harness counts all rules alike.

    Raises:
        `ImportError`: the harness or a package of its rules is missing.
        `ValueError`: an item's rules need data of nltk that are not there.
    """

    template = "{prompt}"
    reference_fields = ("instruction_id_list",)
    reference_types = (list,)
    max_answer_length = 1024

    def __init__(self, items: list[dict], template: str | None = None, max_answer_length: int | None = None):
        super().__init__(items, template, max_answer_length)
        self._rules = _import_rules()
        missing = sorted(_NLTK_RULES & {rule for rules in self.references for rule in rules})
        if missing and not _has_sentences():
            raise ValueError(
                f"The rules {', '.join(missing)} need nltk's punkt_tab: python -m nltk.downloader punkt_tab, or leave out "
                "the items that have them."
            )

    def item_scores(self, answers: list[str]) -> dict[str, list[float]]:
        scores: dict[str, list[float]] = {
            name: [] for name in ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
        }
        for number, (item, answer) in enumerate(zip(self.items, answers)):
            example = self._rules.InputExample(number, item["instruction_id_list"], item["prompt"], item["kwargs"])
            for kind in ("strict", "loose"):
                check = getattr(self._rules, f"test_instruction_following_{kind}")
                followed = check(example, answer).follow_instruction_list
                scores[f"prompt_{kind}"].append(float(all(followed)))
                scores[f"instruction_{kind}"].append(sum(followed) / len(followed))
        return scores


def _import_rules():
    try:
        import lm_eval.tasks  # noqa: F401  # what reads LOCAL_RANK for other ends

        # The rules download nltk's data when they are imported, in the first process of a machine
        with mock.patch.dict(os.environ, LOCAL_RANK="1"):
            from lm_eval.tasks.ifeval import utils
    except ImportError as error:
        raise ImportError(
            f"The rules of IFEval cannot be imported ({error}): pip install 'lm-eval[ifeval]'"
        ) from error
    return utils


def _has_sentences() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True

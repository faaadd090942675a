"""Texts turned into JSON by a schema that the prompt gives: exact match of the object, and of its fields."""

from __future__ import annotations

import json
from typing import Any

from .task import AnswerTask


class Extraction(AnswerTask):
    """
    Items have a text as `question`, and a JSON object as `label`.

    Metrics: `exact_match`, the score, is 1 where the first JSON object of the answer equals the label; `fields` is the share of
    the label's fields that it has with the same value; `valid` is 1 where the answer has a JSON object at all.
    """

    reference_fields = ("label",)

    def reference(self, item: dict, number: int) -> dict[str, Any]:
        label = item.get("label")
        if not isinstance(label, dict) or not label:
            raise ValueError(f"The field 'label' of item {number} of the task must be a JSON object, and not empty.")
        return label

    def item_scores(self, answers: list[str]) -> dict[str, list[float]]:
        scores: dict[str, list[float]] = {"exact_match": [], "fields": [], "valid": []}
        for answer, right in zip(answers, self.references):
            found = _first_object(answer)
            same = (
                [name in found and _equal(found[name], value) for name, value in right.items()] if found else [False]
            )
            scores["exact_match"].append(float(found is not None and _equal(found, right)))
            scores["fields"].append(sum(same) / len(right))
            scores["valid"].append(float(found is not None))
        return scores


def _first_object(text: str) -> dict | None:
    """The first JSON object in a text. Words around it, such as a code fence, are passed over."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            return decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
    return None


def _equal(found: Any, right: Any) -> bool:
    """Equal as JSON, where `true` is not 1 as it is in Python."""
    return json.dumps(found, sort_keys=True) == json.dumps(right, sort_keys=True)

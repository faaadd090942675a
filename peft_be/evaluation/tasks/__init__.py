"""Tasks with references, to score a stand-in by more than its KL to the prompt."""

from __future__ import annotations

import os

from ...data import read_table
from .bbh import BBH
from .classification import Classification
from .dialogue import DialoguePerplexity
from .extraction import Extraction
from .gsm8k import GSM8K
from .ifeval import IFEval
from .judge import EndpointJudge, LocalJudge, RoleBenchJudge
from .rolebench import RoleBench
from .task import AnswerTask, Task, evaluate_task


TASKS: dict[str, type[Task]] = {
    "bbh": BBH,
    "classification": Classification,
    "dialogue-perplexity": DialoguePerplexity,
    "extraction": Extraction,
    "gsm8k": GSM8K,
    "ifeval": IFEval,
    "rolebench": RoleBench,
    "rolebench-judge": RoleBenchJudge,
}

__all__ = [
    "BBH",
    "GSM8K",
    "TASKS",
    "AnswerTask",
    "Classification",
    "DialoguePerplexity",
    "EndpointJudge",
    "Extraction",
    "IFEval",
    "LocalJudge",
    "RoleBench",
    "RoleBenchJudge",
    "Task",
    "evaluate_task",
    "load_task",
]


def load_task(
    name: str, path: str | os.PathLike, where: dict | None = None, max_items: int | None = None, **arguments
) -> Task:
    """
    Make a task from a file.

    Args:
        name (`str`): a key of `TASKS`.
        path (`str` or `os.PathLike`): a file with an item in each row, in any of the formats of [`read_table`], such as
            `.jsonl`; the fields are those that the task's class names.
        where (`dict`, *optional*): take only items with these values, such as `{"role": "Sherlock Holmes", "split": "test"}`.
        max_items (`int`, *optional*): take the first so many.
        arguments: of the task's class.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: there is no such task, a row is no object, no item is left, or one lacks a field.
    """
    if name not in TASKS:
        raise ValueError(f"There is no task '{name}': choose one of {', '.join(TASKS)}.")
    items = [
        item
        for _, item in read_table(path, "file with the items of the task")
        if all(item.get(field) == value for field, value in (where or {}).items())
    ]
    if not items:
        raise ValueError(f"No item of '{path}' fits {where}." if where else f"There are no items in '{path}'.")
    return TASKS[name](items[:max_items], **arguments)

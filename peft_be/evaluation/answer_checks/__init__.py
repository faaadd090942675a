"""Named checks of answers, which their author reads: what an answer must say, how it begins, how long it is."""

from .check import AnswerCheck
from .file import load_checks
from .scores import ALL_CHECKS, MIN_LOST, check_applies, check_scores, failed_checks, is_lost


__all__ = [
    "ALL_CHECKS",
    "MIN_LOST",
    "AnswerCheck",
    "check_applies",
    "check_scores",
    "failed_checks",
    "is_lost",
    "load_checks",
]

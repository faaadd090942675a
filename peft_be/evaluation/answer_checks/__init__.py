"""Named checks of answers, which their author reads: what an answer must say, how it begins, how long it is."""

from .check import AnswerCheck
from .file import load_checks
from .scores import ALL_CHECKS, MIN_LOST, check_applies, check_scores, failed_checks


__all__ = ["ALL_CHECKS", "MIN_LOST", "AnswerCheck", "check_applies", "check_scores", "failed_checks", "load_checks"]

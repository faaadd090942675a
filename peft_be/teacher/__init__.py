from .answers import (
    Answer,
    AnswerCache,
    AnswerSettings,
    answer_states,
    cached_answers,
    common_prefix_length,
    generate_answers,
    model_fingerprint,
    share_prefix,
)
from .prefix import SharedPrefix, can_share_prefix


__all__ = [
    "Answer",
    "AnswerCache",
    "AnswerSettings",
    "SharedPrefix",
    "answer_states",
    "cached_answers",
    "can_share_prefix",
    "common_prefix_length",
    "generate_answers",
    "model_fingerprint",
    "share_prefix",
]

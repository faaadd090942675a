from .answers import (
    AnswerSettings,
    answer_states,
    cached_answers,
    common_prefix_length,
    generate_answers,
    model_fingerprint,
    share_prefix,
    stop_ids,
    teacher_prompts,
    weights_sha256,
)
from .cache import Answer, AnswerCache, cache_limit, teacher_cache_dir
from .divergences import answer_divergences
from .prefix import SharedPrefix, can_share_prefix


__all__ = [
    "Answer",
    "AnswerCache",
    "AnswerSettings",
    "SharedPrefix",
    "answer_divergences",
    "answer_states",
    "cache_limit",
    "cached_answers",
    "can_share_prefix",
    "common_prefix_length",
    "generate_answers",
    "model_fingerprint",
    "share_prefix",
    "stop_ids",
    "teacher_cache_dir",
    "teacher_prompts",
    "weights_sha256",
]

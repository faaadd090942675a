from .answer_checks import AnswerCheck, check_scores, load_checks
from .audit import AuditConfig, audit_leakage
from .difference import check_changes, evaluate_difference
from .fidelity import Fidelity, FidelityScorer, evaluate_fidelity, evaluate_reconstruction
from .gap import Gap
from .held_out import held_out_queries
from .inference import BenchConfig, bench_inference
from .latency import time_to_first_token
from .refusals import evaluate_refusals
from .streaming import StreamedAnswer, find_loop, stream_answer


__all__ = [
    "AnswerCheck",
    "AuditConfig",
    "BenchConfig",
    "Fidelity",
    "FidelityScorer",
    "Gap",
    "StreamedAnswer",
    "audit_leakage",
    "bench_inference",
    "check_changes",
    "check_scores",
    "evaluate_difference",
    "evaluate_fidelity",
    "evaluate_reconstruction",
    "evaluate_refusals",
    "find_loop",
    "held_out_queries",
    "load_checks",
    "stream_answer",
    "time_to_first_token",
]

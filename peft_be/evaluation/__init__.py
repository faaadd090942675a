from .audit import audit_leakage
from .fidelity import Fidelity, FidelityScorer, evaluate_fidelity
from .inference import bench_inference
from .latency import time_to_first_token
from .refusals import evaluate_refusals
from .streaming import StreamedAnswer, stream_answer


__all__ = [
    "Fidelity",
    "FidelityScorer",
    "StreamedAnswer",
    "audit_leakage",
    "bench_inference",
    "evaluate_fidelity",
    "evaluate_refusals",
    "stream_answer",
    "time_to_first_token",
]

from .fidelity import evaluate_fidelity
from .inference import bench_inference
from .latency import time_to_first_token
from .streaming import StreamedAnswer, stream_answer


__all__ = ["StreamedAnswer", "bench_inference", "evaluate_fidelity", "stream_answer", "time_to_first_token"]

from .fidelity import evaluate_fidelity
from .inference import bench_inference
from .latency import time_to_first_token


__all__ = ["bench_inference", "evaluate_fidelity", "time_to_first_token"]

from .fidelity import evaluate_fidelity
from .latency import time_to_first_token


__all__ = ["evaluate_fidelity", "time_to_first_token"]

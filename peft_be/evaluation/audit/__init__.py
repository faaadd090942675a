from .attacks import ATTACKS, Attack
from .audit import audit_leakage
from .metrics import LeakMeter, Output


__all__ = ["ATTACKS", "Attack", "LeakMeter", "Output", "audit_leakage"]

from .attacks import ATTACKS, Attack
from .audit import audit_leakage, check_settings
from .metrics import LeakMeter, Output


__all__ = ["ATTACKS", "Attack", "LeakMeter", "Output", "audit_leakage", "check_settings"]

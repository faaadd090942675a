from .attacks import ATTACKS, Attack
from .audit import AuditConfig, audit_leakage
from .forms import text_of
from .metrics import LeakMeter, Output, check_canaries


__all__ = ["ATTACKS", "Attack", "AuditConfig", "LeakMeter", "Output", "audit_leakage", "check_canaries", "text_of"]

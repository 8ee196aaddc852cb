"""Audit: attacks whose results must agree if a model's robustness is real.

`from bivallate.audit import audit, Audit, Check`.
"""

from bivallate.audit.auditing import audit
from bivallate.audit.check import VERDICTS, Audit, Check, Moment
from bivallate.audit.plan import Plan

__all__ = ["VERDICTS", "Audit", "Check", "Moment", "Plan", "audit"]

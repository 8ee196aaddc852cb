"""Audit: attacks whose results must agree if a model's robustness is real.

`from bivallate.audits import audit, Audit, Check`.
"""

from bivallate.audits.auditing import audit
from bivallate.audits.plan import Plan
from bivallate.audits.result import VERDICTS, Audit, Check, Moment

__all__ = ["VERDICTS", "Audit", "Check", "Moment", "Plan", "audit"]

"""Audit: attacks whose results must agree if a model's robustness is real.

`from bivallate.audits import audit, Audit, Check`.
"""

from bivallate.audits.audit_model import audit
from bivallate.audits.plan import Plan
from bivallate.audits.result import VERDICTS, Audit, AuditProgress, Check
from bivallate.renamed import renamed_names

__all__ = ["VERDICTS", "Audit", "AuditProgress", "Check", "Plan", "audit"]

__getattr__ = renamed_names(__name__, {"Moment": "AuditProgress"})

"""The checker: is a hand-written VJP right?"""

from jaxprop.checking.check import check
from jaxprop.checking.probing import cotangent
from jaxprop.checking.report import Finding, Report

__all__ = ["Finding", "Report", "check", "cotangent"]

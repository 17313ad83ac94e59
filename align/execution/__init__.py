"""Run programs that a model wrote, so that they can do no harm.

Nothing here imports anything else of align: the process that runs a program starts a fresh interpreter with the
standard library alone.
"""

from align.execution.limits import Limits
from align.execution.runner import Outcome, protections, run_program

__all__ = ["Limits", "Outcome", "protections", "run_program"]

"""Instructions with constraints that a program can verify (Zhou et al. 2023, IFEval): prompts, checks and edits."""

from align.sandbox.constraints.constraint import Constraint
from align.sandbox.constraints.demonstrations import Draft, Tally, demonstrations, edited
from align.sandbox.constraints.kinds import HELD_OUT, KINDS, TRAINED, from_record
from align.sandbox.constraints.prompts import Verdict, read_prompt, verdicts
from align.sandbox.constraints.write import ConstraintsConfig, write_constraints

__all__ = [
    "HELD_OUT",
    "KINDS",
    "TRAINED",
    "Constraint",
    "ConstraintsConfig",
    "Draft",
    "Tally",
    "demonstrations",
    "edited",
    "Verdict",
    "from_record",
    "read_prompt",
    "verdicts",
    "write_constraints",
]

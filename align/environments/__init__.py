"""Multi-turn tasks: what answers a model between its turns, and rewards it."""

from align.environments.calculator import Calculator
from align.environments.environment import Environment, Step
from align.environments.twenty_questions import TwentyQuestions

__all__ = ["Calculator", "Environment", "Step", "TwentyQuestions"]

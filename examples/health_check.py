"""A health check: the validation loss has not improved for some validations.

align fit --config sft.yaml --health.checks+=health_check.Plateau
"""

from dataclasses import dataclass

from align.callbacks import Finding, HealthCheck
from align.callbacks.health_checks import History, require


@dataclass(frozen=True)
class Plateau(HealthCheck):
    """Warns when val/loss has not fallen below its minimum for this many validations."""

    metrics = ("val/loss",)

    patience: int = 3
    """Validations without a new minimum"""

    def __post_init__(self) -> None:
        """Refuse an impossible patience."""
        require(self, self.patience >= 1, "patience", "at least 1")

    def find(self, metric: str, history: History) -> Finding | None:
        """Compare the latest readings with the minimum before them."""
        losses = [reading.value for reading in history[metric]]
        if len(losses) <= self.patience:
            return None
        best, latest = min(losses[: -self.patience]), losses[-self.patience :]
        if min(latest) < best:
            return None
        message = f"plateau: {metric} is {latest[-1]:.4g}, not below {best:.4g} for {self.patience} validations: stop"
        return Finding(latest[-1], best, message)

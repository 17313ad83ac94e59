"""Controllers of the KL coefficient."""

import math


class FixedKL:
    """A constant coefficient.

    Attributes:
        value: the coefficient, reward per nat.
    """

    def __init__(self, value: float) -> None:
        """Keep ``value``, >= 0."""
        _require_not_negative("value", value)
        self.value = value

    def update(self, kl: float, n: int) -> None:
        """Keep the coefficient."""

    def state_dict(self) -> dict[str, float]:
        """The coefficient."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Nothing to restore: a fixed coefficient is a setting, and a resumed run may change it."""


class AdaptiveKL:
    """A coefficient that moves the KL towards a target (Ziegler et al. 2019, section 2.2).

    ``value *= 1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon``.

    Attributes:
        value: the coefficient, reward per nat.
    """

    def __init__(self, target: float, horizon: int, initial: float) -> None:
        """Start the controller.

        Args:
            target: KL to aim for, nats per response, > 0.
            horizon: responses over which the coefficient changes by at most about a fifth, > 0.
            initial: the first coefficient, > 0: multiplying never leaves 0.

        Raises:
            ValueError: one of them is not above 0.
        """
        for name, setting in (("target", target), ("horizon", horizon), ("initial", initial)):
            if not 0 < setting < math.inf:
                raise ValueError(f"adaptive KL: {name} is {setting}; it must be above 0")
        self.target, self.horizon, self.initial, self.value = target, horizon, initial, initial

    def update(self, kl: float, n: int) -> None:
        """Move the coefficient after ``n`` responses.

        Args:
            kl: their mean KL, nats per response.
            n: responses; more than the horizon count as the horizon.

        Raises:
            ValueError: the KL is not finite; the coefficient would never recover.
        """
        if not math.isfinite(kl):
            raise ValueError(f"adaptive KL: the measured KL is {kl}; the coefficient stays {self.value}")
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * min(n / self.horizon, 1.0)

    def state_dict(self) -> dict[str, float]:
        """The coefficient, and what it started from; target and horizon are settings."""
        return {"value": self.value, "initial": self.initial}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the coefficient of ``state_dict``, unless the setting it started from was changed."""
        self.value = state["value"] if state.get("initial") == self.initial else self.initial


def _require_not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"KL coefficient: {name} is {value}; it must not be negative")

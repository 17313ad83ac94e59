"""Stop sequences in text that comes in pieces."""

from collections.abc import Sequence


class StopFinder:
    """Passes text on until a stop sequence is whole; what may be the beginning of one waits.

    Of several stop sequences the one that ends first counts, so the result does not depend on how the text is cut into
    pieces. The stop sequence and all behind it are left out.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Look for ``stops``, none of them empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that is certain now; sets ``found`` once a stop sequence is whole."""
        if not self._stops:
            return text
        if self.found:
            return ""
        held = self._held + text
        places = [(held.index(stop) + len(stop), -len(stop)) for stop in self._stops if stop in held]
        if places:
            self.found, self._held = True, ""
            end, length = min(places)
            return held[: end + length]
        waiting = max(_overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - waiting :]
        return held[: len(held) - waiting]

    def flush(self) -> str:
        """What still waits when the text is over: a stop sequence that never became whole is text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest beginning of ``stop``, short of all of it, that ends ``text``."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)

"""Our own engine: ``align.generation`` in the trainer's process."""

from dataclasses import dataclass
from pathlib import Path

from align.engines.engine import Asked, Crew, Engine, OnProgress, OpenEngine, Sampling, Weights
from align.generation.responses import Responses, sample_responses
from align.tokenizer import Tokenizer


@dataclass(frozen=True)
class Ours(Engine):
    """Samples with the network itself, so that there is nothing to send."""

    @property
    def identity(self) -> dict[str, str]:
        """See ``Engine.identity``."""
        return {}

    def open(self, tokenizer: Tokenizer, *, crew: Crew = Crew(), log: Path | None = None) -> OpenEngine:  # noqa: B008
        """See ``Engine.open``."""
        return _OpenOurs(tokenizer)


class _OpenOurs(OpenEngine):
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def submit(self, weights: Weights, asked: Asked, on_progress: OnProgress | None = None) -> Sampling:
        steps, done = asked.sampling.max_new_tokens, 0

        def on_step() -> None:
            nonlocal done
            done += 1
            if on_progress is not None:
                on_progress(done / steps)

        return _Sampled(
            sample_responses(
                weights.network, self._tokenizer, asked.prompts, asked.sampling, seeds=asked.seeds, on_step=on_step
            )
        )


@dataclass(frozen=True)
class _Sampled(Sampling):
    responses: Responses

    def result(self, on_progress: OnProgress | None = None) -> Responses:
        return self.responses

"""Where the responses of an iteration come from: an engine, now or one iteration ahead.

Ahead of time, the engine samples the responses of iteration k + 1 with the weights from before the update of iteration
k, while that update runs. The trainer recomputes their log-probs under the policy that it trains, and weights them by
the truncated ratio to the sampler's (``rollout.importance_cap``), which corrects for the older weights too.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from align.algorithms.episodes import sample_episodes
from align.algorithms.module import Stage
from align.algorithms.ppo_settings import RolloutConfig
from align.algorithms.rollout import Responses, RolloutPrompt, StartedRollout, earlier_occurrences, start_rollout
from align.algorithms.rollout_buffer import TakePrompts
from align.engines import Crew, OpenEngine
from align.engines.engine import OnProgress
from align.environments import Environment
from align.io.progress import progress_bar
from align.training.preemption import preemptible


class _Ahead(NamedTuple):
    """Responses sampled ahead of their iteration.

    Attributes:
        iteration: that will train on them.
        step: optimizer steps that the policy had made.
        started: gives them.
    """

    iteration: int
    step: int
    started: "StartedRollout | _Kept"


class _Kept(NamedTuple):
    """Responses that are finished."""

    responses: Responses

    def finish(self, on_progress: OnProgress | None = None) -> Responses:
        return self.responses


class CloseEngine(Callback):
    """Closes a source when its run fails: Lightning then tears down the strategy, but not the module."""

    def __init__(self, source: "ResponseSource") -> None:
        """Of the run."""
        self._source = source

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close it."""
        self._source.close()


class ResponseSource:
    """Samples responses for a stage.

    Args:
        stage: its network samples.
        config: sampling.
        environment: plays episodes with the policy; None: single responses.
        steps: optimizer steps of an iteration that does not end early.

    Attributes:
        staleness: optimizer steps that the policy has made since it sampled the latest responses.
    """

    def __init__(self, stage: Stage, config: RolloutConfig, environment: Environment | None, *, steps: int) -> None:
        """Start without an engine; it is opened at the first iteration."""
        self._steps = steps
        self._stage, self._config, self._environment = stage, config, environment
        self._engine: OpenEngine | None = None
        self._numbers: list[int] = []
        self._ahead: _Ahead | None = None
        self._next: _Ahead | None = None
        self.staleness = 0

    def begin(self) -> None:
        """Begin an iteration, perhaps again after a failure."""
        self._numbers, self._next = [], None

    def respond(self, take: TakePrompts, iteration: int, tokenizer: Any, *, seed: int) -> Responses:
        """Responses to prompts of this rank; abandoned when the run is preempted.

        Args:
            take: gives the next prompts.
            iteration: of the run.
            tokenizer: of the policy.
            seed: of the run.

        Raises:
            EngineError: the engine failed.
            Preempted: the run was preempted.
        """
        step = self._stage.trainer.global_step
        if self._ahead is None:
            started, self.staleness = self._start(take(), iteration, tokenizer, seed), 0
        else:
            started, self.staleness = self._ahead.started, step - self._ahead.step
        with self._watching(iteration) as on_progress:
            responses = started.finish(on_progress)
        if self._config.ahead and not self._is_last(iteration):
            self._numbers = []
            self._next = _Ahead(iteration + 1, step, self._start(take(), iteration + 1, tokenizer, seed))
        return responses

    def end(self) -> None:
        """The iteration has its rollout: what was sampled for the next one counts."""
        self._ahead = self._next

    def close(self) -> None:
        """Close the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def state_dict(self) -> dict[str, Any] | None:
        """What was sampled ahead, of all ranks in the order of one process; None without it."""
        if self._ahead is None:
            return None
        responses = self._ahead.started.finish()
        self._ahead = self._ahead._replace(started=_Kept(responses))
        parts = self._of_all_ranks(_rows_of(responses))
        groups = [_groups(part, self._config.group_size) for part in parts]
        return {
            "iteration": self._ahead.iteration,
            "step": self._ahead.step,
            "rows": [row for of_all in zip(*groups, strict=True) for group in of_all for row in group],
        }

    def load_state_dict(self, state: Mapping[str, Any] | None, *, pad: int) -> None:
        """Restore what was sampled ahead, on any number of ranks."""
        self._ahead = None
        if state is None:
            return
        ranks, rank, _ = self._stage.sharing
        groups = _groups(state["rows"], self._config.group_size)[rank::ranks]
        rows = [row for group in groups for row in group]
        responses = _responses_of(rows, pad=pad, device=self._stage.trainer.strategy.root_device)
        self._ahead = _Ahead(state["iteration"], state["step"], _Kept(responses))

    def _start(self, prompts: list[RolloutPrompt], iteration: int, tokenizer: Any, seed: int) -> Any:
        """Begin to sample responses to some prompts."""
        earlier = self._earlier([prompt.number for prompt in prompts])
        with self._watching(iteration) as on_progress:
            settings: dict[str, Any] = {
                "tokenizer": tokenizer,
                "seed": seed,
                "iteration": iteration,
                "earlier": earlier,
                "engine": self._opened(tokenizer),
                "version": str(self._stage.trainer.global_step),
                "on_progress": on_progress,
            }
            network = self._stage.network
            if self._environment is None:
                return start_rollout(network, prompts, self._config, **settings)
            return _Kept(sample_episodes(network, prompts, self._environment, self._config, **settings))

    def _opened(self, tokenizer: Any) -> OpenEngine:
        if self._engine is None:
            trainer = self._stage.trainer
            crew = Crew(
                token=trainer.strategy.broadcast(uuid.uuid4().hex[:12]),
                rank=trainer.global_rank,
                ranks=trainer.world_size,
                leads=trainer.local_rank == 0,
                wait=trainer.strategy.barrier,
            )
            log = Path(trainer.default_root_dir) / "engine.log"
            self._engine = self._config.engine.open(tokenizer, crew=crew, log=log)
        return self._engine

    def _earlier(self, numbers: Sequence[int]) -> list[int]:
        """How often each of these prompts occurs before in the iteration, over all ranks."""
        self._numbers += numbers
        own = torch.tensor(self._numbers, device=self._stage.trainer.strategy.root_device)
        parts = self._stage.over_ranks(own) if self._stage.sharing.ranks > 1 else [own]
        counts = earlier_occurrences([part.tolist() for part in parts])[self._stage.sharing.rank]
        return counts[-len(numbers) :]

    def _is_last(self, iteration: int) -> bool:
        """Whether the run ends after this iteration at the latest."""
        epochs, steps = self._stage.trainer.max_epochs or -1, self._stage.trainer.max_steps
        return iteration + 1 == epochs or 0 <= steps <= self._stage.trainer.global_step + self._steps

    def _of_all_ranks(self, rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        ranks, _, group = self._stage.sharing
        if ranks == 1:
            return [rows]
        parts: list[Any] = [None] * ranks
        dist.all_gather_object(parts, rows, group=group)
        return parts

    def breaking_off(self) -> AbstractContextManager[Callable[[], None]]:
        """Around work that a preempted run may abandon; tensor-parallel devices must not stop on their own."""
        mesh = self._stage.device_mesh
        return preemptible(self._stage.trainer, alone=mesh is None or mesh["tensor_parallel"].size() == 1)

    @contextmanager
    def _watching(self, iteration: int) -> Iterator[OnProgress]:
        """Around sampling: a progress bar, since Lightning's own stands still; and the run may be preempted."""
        trainer, tokens, shown = self._stage.trainer, self._config.max_new_tokens, 0
        show = trainer.is_global_zero and trainer.progress_bar_callback is not None
        bar = progress_bar(f"rollout {iteration}: sampling", tokens, show=show)
        with self.breaking_off() as break_off, bar as advance:

            def on_progress(share: float) -> None:
                nonlocal shown
                break_off()
                advance(max(0, int(share * tokens) - shown))
                shown = max(shown, int(share * tokens))

            yield on_progress


def _rows_of(responses: Responses) -> list[dict[str, Any]]:
    """Each response as a record of plain values, without padding."""
    rows = []
    for b, (prompt_length, length) in enumerate(zip(responses.prompt_lengths, responses.lengths, strict=True)):
        tokens = length - prompt_length
        rows.append(
            {
                "ids": responses.ids[b, :length].tolist(),
                "prompt_length": prompt_length,
                "mask": responses.mask[b, :tokens].tolist(),
                "logprobs": responses.logprobs[b, :tokens].tolist(),
                "finished": bool(responses.finished[b]),
                "prompt": responses.prompts[b],
                "columns": responses.columns[b],
                "text": responses.texts[b],
                "rewards": None if responses.rewards is None else responses.rewards[b, :tokens].tolist(),
            }
        )
    return rows


def _responses_of(rows: Sequence[Mapping[str, Any]], *, pad: int, device: torch.device) -> Responses:
    """The inverse of ``_rows_of``."""
    lengths = [len(row["ids"]) for row in rows]
    longest = max(len(row["mask"]) for row in rows)

    def padded(name: str, fill: Any, size: int) -> torch.Tensor:
        return torch.tensor([[*row[name], *[fill] * (size - len(row[name]))] for row in rows], device=device)

    return Responses(
        ids=padded("ids", pad, max(lengths)),
        prompt_lengths=[row["prompt_length"] for row in rows],
        lengths=lengths,
        mask=padded("mask", False, longest),
        logprobs=padded("logprobs", 0.0, longest),
        finished=torch.tensor([row["finished"] for row in rows], device=device),
        prompts=[row["prompt"] for row in rows],
        columns=[row["columns"] for row in rows],
        texts=[row["text"] for row in rows],
        rewards=None if rows[0]["rewards"] is None else padded("rewards", 0.0, longest),
    )


def _groups(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]

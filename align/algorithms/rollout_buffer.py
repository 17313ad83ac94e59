"""The rollout buffer as a train loader: one pass is one PPO iteration and yields micro-batches of ordinary training.

Data flows one way: prompts -> Responses -> Rollout -> RolloutBatch -> loss. The loader's state goes into checkpoints,
so that a run can resume in the middle of an iteration.

Every rank holds the rollout of all ranks and takes its share of each minibatch. So the minibatches are those of one
process, whatever the number of ranks, and the state of any rank is complete.

Legend: B responses of an iteration, T tokens of the longest row, N tokens of the longest response, R rows of a
micro-batch, M tokens of their responses, M' those with what an environment wrote between two turns.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from align.algorithms.rollout import RolloutPrompt, chosen_of, chosen_tokens, prompts_of
from align.batches import PromptBatch
from align.model.response_states import response_tokens


class Rollout(NamedTuple):
    """What one iteration trains on: responses with their statistics, 0 where the mask is False.

    Attributes:
        ids: ``[B, T]`` int64, prompt and response, right-padded.
        prompt_lengths: ``[B]`` int64, tokens of each prompt.
        lengths: ``[B]`` int64, tokens of each row.
        mask: ``[B, N]`` bool, True on tokens of the response; of the model's turns where there are several.
        logprobs: ``[B, N]`` under the policy that sampled, nats; the sampler's where the update recomputes them.
        reference_logprobs: ``[B, N]`` under the reference, nats; None where the KL is not used.
        values: ``[B, N]`` before the update; 0 without a value model.
        advantages: ``[B, N]`` as the loss uses them.
        returns: ``[B, N]`` targets of the values; 0 without a value model.
        scores: ``[B]`` what is optimised apart from the KL.
        kl_coef: weight of the KL in this iteration, the same on every rank.
    """

    ids: torch.Tensor
    prompt_lengths: torch.Tensor
    lengths: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    reference_logprobs: torch.Tensor | None
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    scores: torch.Tensor
    kl_coef: float


class RolloutBatch(NamedTuple):
    """A micro-batch: some responses, with the statistics of their tokens concatenated.

    Attributes:
        ids: ``[R, T]`` int64, no wider than its longest row.
        prompt_lengths: R, tokens of each prompt.
        lengths: R, tokens of each row.
        counts: ``[R]`` int64, tokens of each response; they add up to M.
        chosen: ``[M']`` bool, which tokens after the prompts are those of the responses; None: all.
        targets: ``[M]`` int64, the tokens of the responses.
        logprobs: ``[M]`` under the policy that sampled.
        reference_logprobs: ``[M]``; None where the KL is not used.
        values: ``[M]`` before the update.
        advantages: ``[M]``.
        returns: ``[M]``.
        kl_coef: weight of the KL in this iteration.
        group_size: this many neighbouring rows share a prompt.
        iteration: of the run, from 0.
        position: index of the micro-batch within the iteration.
    """

    ids: torch.Tensor
    prompt_lengths: tuple[int, ...]
    lengths: tuple[int, ...]
    counts: torch.Tensor
    chosen: torch.Tensor | None
    targets: torch.Tensor
    logprobs: torch.Tensor
    reference_logprobs: torch.Tensor | None
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    kl_coef: float
    group_size: int
    iteration: int
    position: int


_PER_TOKEN = ("logprobs", "reference_logprobs", "values", "advantages", "returns")


def join_ranks(rollout: Rollout, group_size: int, over_ranks: Callable[[torch.Tensor], list[torch.Tensor]]) -> Rollout:
    """The rollout of all ranks, in the order of a single process.

    Each rank takes a strided slice of the prompts, so group g of rank r is group ``g * ranks + r`` of all.

    Args:
        rollout: of this rank; every rank has the same number of groups.
        group_size: neighbouring responses to one prompt.
        over_ranks: gathers a tensor, of the same shape on every rank, from all ranks.
    """
    sizes = torch.tensor([rollout.ids.shape[1], rollout.mask.shape[1]], device=rollout.ids.device)
    width, longest = torch.stack(over_ranks(sizes)).amax(0).tolist()
    joined: dict[str, Any] = {}
    for name, tensor in rollout._asdict().items():
        if not isinstance(tensor, torch.Tensor):
            joined[name] = tensor
            continue
        if tensor.dim() == 2:
            tensor = F.pad(tensor, (0, (width if name == "ids" else longest) - tensor.shape[1]))
        # Not every backend gathers bool.
        parts = over_ranks(tensor.byte() if tensor.dtype == torch.bool else tensor)
        groups = torch.stack([part.unflatten(0, (-1, group_size)) for part in parts], dim=1)
        joined[name] = groups.flatten(0, 2).to(tensor.dtype)
    return Rollout(**joined)


TakePrompts = Callable[[], list[RolloutPrompt]]
"""() -> this rank's next prompts, as many as an iteration trains on"""

RollOut = Callable[[TakePrompts, int], tuple[Rollout | None, dict[str, float]]]
"""(take, iteration) -> the rollout to train on, or None where the run has to end; and what to log of it"""


@dataclass(frozen=True)
class BatchPlan:
    """Which responses form each micro-batch, as a function of (seed, iteration).

    Responses are shuffled over the minibatches of a pass. Order within a minibatch does not matter, so rows of similar
    length share a micro-batch, and each rank takes a strided slice. Groups stay together if there are enough of them,
    so that their prompt is computed once.

    Raises:
        ValueError: there are fewer responses than micro-batches of a pass.
    """

    episodes: int
    """Responses per iteration, over all ranks"""
    group_size: int
    """Responses to each prompt"""
    epochs: int
    """Passes over the rollout"""
    minibatches: int
    """Optimizer steps per pass"""
    micro_batches: int
    """Micro-batches per optimizer step, on each rank"""
    ranks: int = 1
    """Data-parallel processes"""
    rank: int = 0
    """Index of this process among them"""

    def __post_init__(self) -> None:
        """Refuse empty micro-batches, and ranks with different numbers of prompts."""
        if self.episodes % (self.group_size * self.ranks):
            raise ValueError(
                f"rollout.episodes {self.episodes} can't be split over {self.ranks} ranks in groups of "
                f"{self.group_size}: set it to a multiple of {self.group_size * self.ranks}"
            )
        if self.episodes < self.micro_batches_per_pass:
            raise ValueError(
                f"an iteration has {self.episodes} responses, fewer than update.minibatches {self.minibatches} x "
                f"accumulate_grad_batches {self.micro_batches} x ranks {self.ranks}: raise rollout.episodes to at "
                f"least {self.micro_batches_per_pass}, or lower one of the others"
            )

    def __len__(self) -> int:
        """Micro-batches of an iteration."""
        return self.epochs * self.minibatches * self.micro_batches

    @property
    def prompts(self) -> int:
        """Prompts of an iteration on each rank."""
        return self.episodes // (self.group_size * self.ranks)

    @property
    def micro_batches_per_pass(self) -> int:
        """Micro-batches of a pass, over all ranks."""
        return self.minibatches * self.micro_batches * self.ranks

    @property
    def unit(self) -> int:
        """Neighbouring responses that stay together: a group, or one where there are too few groups."""
        return self.group_size if self.episodes // self.group_size >= self.micro_batches_per_pass else 1

    @property
    def identity(self) -> dict[str, int]:
        """The settings that a position within an iteration depends on; the same for any number of ranks."""
        names = ("episodes", "group_size", "epochs", "minibatches", "micro_batches")
        return {name: getattr(self, name) for name in names}

    def rows(self, lengths: np.ndarray, *, seed: int, iteration: int) -> list[list[int]]:
        """Rows of every micro-batch of an iteration, on this rank.

        Args:
            lengths: ``[B]`` tokens of each row.
            seed: of the run.
            iteration: of the run.

        Returns:
            list: as many as ``len(self)``, each of row numbers.
        """
        units = np.arange(self.episodes).reshape(-1, self.unit)
        longest = lengths[units].max(1)
        chosen = []
        for epoch in range(self.epochs):
            order = np.random.default_rng([seed, iteration, epoch]).permutation(len(units))
            for minibatch in np.array_split(order, self.minibatches):
                by_length = minibatch[np.argsort(-longest[minibatch], kind="stable")]
                own = by_length[self.rank :: self.ranks]
                chosen += [units[part].ravel().tolist() for part in np.array_split(own, self.micro_batches)]
        return chosen


class PromptStream:
    """Prompts one by one from a loader of batches, endlessly; its position can be saved.

    Args:
        loader: with ``state_dict`` and ``load_state_dict``, or the saved position means nothing.
        ranks: processes that share the prompts; a position counts the prompts of all of them.
    """

    def __init__(self, loader: Iterable[PromptBatch], *, ranks: int = 1) -> None:
        """Start before the first prompt."""
        self._loader, self._ranks = loader, ranks
        self._start()

    def take(self, count: int) -> list[RolloutPrompt]:
        """The next ``count`` prompts.

        Raises:
            ValueError: the loader has none.
        """
        taken: list[RolloutPrompt] = []
        while len(taken) < count:
            if self._offset == len(self._batch):
                self._next_batch()
            more = self._batch[self._offset : self._offset + count - len(taken)]
            self._offset += len(more)
            taken += more
        return taken

    def state_dict(self) -> dict[str, Any]:
        """The loader's state before the current batch, and how many of its prompts were taken."""
        return {"before": self._before, "offset": self._offset * self._ranks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the prompts already taken.

        Raises:
            ValueError: their number can't be split over this number of ranks.
        """
        self._start()
        if state["before"] is None:
            return
        if state["offset"] % self._ranks:
            raise ValueError(
                f"the checkpoint was saved after prompt {state['offset']} of a batch, which can't be split over "
                f"{self._ranks} ranks: resume on a number of ranks that divides it"
            )
        if hasattr(self._loader, "load_state_dict"):
            self._loader.load_state_dict(state["before"])
        self._next_batch()
        self._offset = state["offset"] // self._ranks

    def _start(self) -> None:
        self._iterator: Iterator[PromptBatch] | None = None
        self._before: Any = None
        self._batch: list[RolloutPrompt] = []
        self._offset = 0

    def _next_batch(self) -> None:
        self._before = self._loader.state_dict() if hasattr(self._loader, "state_dict") else {}
        batch = None if self._iterator is None else next(self._iterator, None)
        for _ in range(2):  # a loader restored to the end of a pass has nothing left in its first one
            if batch is None:
                self._iterator = iter(self._loader)
                batch = next(self._iterator, None)
        if batch is None:
            raise ValueError("there are no training prompts")
        self._batch = prompts_of(batch)
        self._offset = 0


class RolloutLoader:
    """The train loader of PPO: a pass rolls out once and yields its micro-batches, ``epochs`` times each response.

    Args:
        prompts: of the run.
        roll_out: makes the rollout of an iteration.
        plan: splits it into micro-batches.
        seed: of the run, called when the first iteration begins.

    Attributes:
        iteration: the current one, from 0; -1 before the first.
        position: micro-batches of it that were yielded.
        metrics: of its rollout.
        rollout: what it trains on; None before the first, and where the run has to end.
    """

    def __init__(
        self, prompts: Iterable[PromptBatch], roll_out: RollOut, plan: BatchPlan, *, seed: Callable[[], int]
    ) -> None:
        """Start without a rollout."""
        self.prompts, self.plan = PromptStream(prompts, ranks=plan.ranks), plan
        self._roll_out, self._seed = roll_out, seed
        self.iteration, self.position = -1, len(plan)
        self.metrics: dict[str, float] = {}
        self.rollout: Rollout | None = None

    def __len__(self) -> int:
        """Micro-batches of an iteration."""
        return len(self.plan)

    def __iter__(self) -> Iterator[RolloutBatch]:
        """Continue the current iteration at its position, or begin the next."""
        if self.position == len(self):
            self._begin()
        rollout = self.rollout
        if rollout is None:
            return
        rows = self.plan.rows(rollout.lengths.cpu().numpy(), seed=self._seed(), iteration=self.iteration)
        while self.position < len(self):
            self.position += 1
            yield self._batch(rollout, rows[self.position - 1])

    def skip_rest(self) -> int:
        """Make the next pass begin a new iteration; returns how many micro-batches are skipped."""
        left, self.position = len(self) - self.position, len(self)
        return left

    def state_dict(self) -> dict[str, Any]:
        """The position in the prompts and in the iteration, and its rollout while it is still needed."""
        state = {"iteration": self.iteration, "position": self.position, "metrics": self.metrics}
        state |= {"plan": self.plan.identity, "prompts": self.prompts.state_dict(), "rollout": None}
        if self.position < len(self) and self.rollout is not None:
            values = self.rollout._asdict()
            state["rollout"] = {n: v.cpu() if isinstance(v, torch.Tensor) else v for n, v in values.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a checkpoint, perhaps of another number of ranks.

        Raises:
            ValueError: it was saved in the middle of an iteration whose micro-batches these settings would change.
        """
        kept = state["rollout"]
        if kept is not None:
            for name, now in self.plan.identity.items():
                if state["plan"][name] != now:
                    raise ValueError(
                        f"the checkpoint is from the middle of an iteration with {name} {state['plan'][name]}, now it "
                        f"is {now}: resume with the same settings, or start a new run from the model directory"
                    )
        self.iteration = state["iteration"]
        self.position = len(self) if kept is None else state["position"]
        self.metrics = dict(state["metrics"])
        self.rollout = None if kept is None else Rollout(**kept)
        self.prompts.load_state_dict(state["prompts"])

    def _begin(self) -> None:
        """Roll out; a failure leaves the loader as it was."""
        before = self.prompts.state_dict()
        try:
            rollout, metrics = self._roll_out(lambda: self.prompts.take(self.plan.prompts), self.iteration + 1)
        except BaseException:
            self.prompts.load_state_dict(before)
            raise
        self.iteration += 1
        self.rollout, self.metrics = rollout, metrics
        self.position = len(self) if rollout is None else 0

    def _batch(self, rollout: Rollout, rows: list[int]) -> RolloutBatch:
        """The micro-batch of ``rows``, on the device of the rollout."""
        chosen = torch.tensor(rows, device=rollout.ids.device)
        lengths = rollout.lengths[chosen].tolist()
        prompt_lengths = rollout.prompt_lengths[chosen].tolist()
        ids, mask = rollout.ids[chosen, : max(lengths)], rollout.mask[chosen]
        statistics = {name: getattr(rollout, name) for name in _PER_TOKEN}
        own = chosen_tokens(mask, prompt_lengths, lengths)
        tokens: dict[str, Any] = {name: None if of is None else of[chosen][mask] for name, of in statistics.items()}
        return RolloutBatch(
            ids=ids,
            prompt_lengths=tuple(prompt_lengths),
            lengths=tuple(lengths),
            counts=mask.sum(1),
            chosen=own,
            targets=chosen_of(response_tokens(ids, prompt_lengths, lengths), own),
            kl_coef=rollout.kl_coef,
            group_size=self.plan.unit,
            iteration=self.iteration,
            position=self.position - 1,
            **tokens,
        )

"""Experience as a train loader: one pass is one iteration, what it yields are micro-batches of ordinary training.

The data flows one way: prompts -> Rollout -> Experience -> ExperienceBatch -> loss. What the loader holds goes into
checkpoints, so that a run can be taken up in the middle of an iteration.

Every rank holds the experience of all of them, and takes its share of each minibatch: so the minibatches are those of
one process, whatever the number of ranks, and every rank can save all there is.

Legend: B responses of an iteration, T tokens of the longest row, N tokens of the longest response, R rows of a
micro-batch, M tokens of their responses.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from align.algorithms.rollout import Prompt
from align.batches import PromptBatch
from align.model.response_states import response_tokens


class Experience(NamedTuple):
    """What one iteration learns from; 0 where the mask is False.

    Attributes:
        ids: ``[B, T]`` int64, prompt and response, right-padded.
        prompt_lengths: ``[B]`` int64, tokens of each prompt.
        lengths: ``[B]`` int64, tokens of each row.
        mask: ``[B, N]`` bool, True on tokens of the response.
        logprobs: ``[B, N]`` of the policy that sampled, nats.
        reference_logprobs: ``[B, N]`` nats.
        values: ``[B, N]`` before the update; 0 without a value model.
        advantages: ``[B, N]`` as the loss uses them.
        returns: ``[B, N]`` what the values should have been; 0 without a value model.
        scores: ``[B]`` what was optimised, the KL aside.
    """

    ids: torch.Tensor
    prompt_lengths: torch.Tensor
    lengths: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    reference_logprobs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    scores: torch.Tensor


class ExperienceBatch(NamedTuple):
    """A micro-batch: some responses, and what is known of each of their tokens, one after another.

    Attributes:
        ids: ``[R, T]`` int64, no wider than its longest row.
        prompt_lengths: R, tokens of each prompt.
        lengths: R, tokens of each row.
        targets: ``[M]`` int64, the tokens of the responses.
        logprobs: ``[M]`` of the policy that sampled.
        reference_logprobs: ``[M]``.
        values: ``[M]`` before the update.
        advantages: ``[M]``.
        returns: ``[M]``.
        group_size: so many neighbouring rows answer the same prompt.
        iteration: which this is of.
        position: the micro-batch's number within the iteration.
    """

    ids: torch.Tensor
    prompt_lengths: tuple[int, ...]
    lengths: tuple[int, ...]
    targets: torch.Tensor
    logprobs: torch.Tensor
    reference_logprobs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    group_size: int
    iteration: int
    position: int


_PER_TOKEN = ("logprobs", "reference_logprobs", "values", "advantages", "returns")


def join_ranks(
    experience: Experience, group_size: int, over_ranks: Callable[[torch.Tensor], list[torch.Tensor]]
) -> Experience:
    """The experience of all ranks, in the order in which one process would have had it.

    Prompts are dealt in turns, so group g of rank r is group ``g * ranks + r`` of all.

    Args:
        experience: of this rank; each rank has as many groups.
        group_size: neighbouring responses to one prompt.
        over_ranks: a tensor -> that of every rank, of one shape.
    """
    sizes = torch.tensor([experience.ids.shape[1], experience.mask.shape[1]], device=experience.ids.device)
    width, longest = torch.stack(over_ranks(sizes)).amax(0).tolist()
    joined = {}
    for name, tensor in experience._asdict().items():
        if tensor.dim() == 2:
            tensor = F.pad(tensor, (0, (width if name == "ids" else longest) - tensor.shape[1]))
        # Not every backend gathers bool.
        parts = over_ranks(tensor.byte() if tensor.dtype == torch.bool else tensor)
        groups = torch.stack([part.unflatten(0, (-1, group_size)) for part in parts], dim=1)
        joined[name] = groups.flatten(0, 2).to(tensor.dtype)
    return Experience(**joined)


class Collected(NamedTuple):
    """What an iteration's rollout gave.

    Attributes:
        experience: to learn from; None where the run has to end.
        metrics: to log.
    """

    experience: Experience | None
    metrics: dict[str, float]


@dataclass(frozen=True)
class BatchPlan:
    """How an iteration's responses are cut into micro-batches, as a function of (seed, iteration).

    Responses are shuffled over the minibatches of a pass. Within a minibatch the order means nothing, so there rows of
    like length go into one micro-batch, and ranks get every so manieth. Groups stay together where there are enough of
    them, so that their prompt is computed once.

    Raises:
        ValueError: there are fewer responses than micro-batches of a pass.
    """

    episodes: int
    """Responses of an iteration, all ranks together"""
    group_size: int
    """Responses to each prompt"""
    epochs: int
    """Passes over them"""
    minibatches: int
    """Optimizer steps of a pass"""
    micro_batches: int
    """Micro-batches of an optimizer step, on each rank"""
    ranks: int = 1
    """Data-parallel processes"""
    rank: int = 0
    """Which of them this is"""

    def __post_init__(self) -> None:
        """Refuse what leaves a micro-batch empty, or ranks with different numbers of prompts."""
        if self.episodes % (self.group_size * self.ranks):
            raise ValueError(
                f"rollout.episodes {self.episodes} can't be dealt to {self.ranks} ranks in groups of "
                f"{self.group_size}: set it to a multiple of {self.group_size * self.ranks}"
            )
        if self.episodes < self.pieces:
            raise ValueError(
                f"an iteration has {self.episodes} responses, fewer than update.minibatches {self.minibatches} x "
                f"accumulate_grad_batches {self.micro_batches} x ranks {self.ranks}: raise rollout.episodes to at "
                f"least {self.pieces}, or lower one of the others"
            )

    def __len__(self) -> int:
        """Micro-batches of an iteration."""
        return self.epochs * self.minibatches * self.micro_batches

    @property
    def pieces(self) -> int:
        """Micro-batches of a pass, all ranks together."""
        return self.minibatches * self.micro_batches * self.ranks

    @property
    def unit(self) -> int:
        """Neighbouring responses that stay together: a group, or one where there are too few groups."""
        return self.group_size if self.episodes // self.group_size >= self.pieces else 1

    @property
    def identity(self) -> dict[str, int]:
        """What a place within an iteration means: the same on every rank, whatever their number."""
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
    """Prompts one by one from a loader of batches, over and over; its place can be saved.

    Args:
        loader: has ``state_dict`` and ``load_state_dict`` if the place is to mean anything.
        ranks: processes that the prompts are dealt to; places count the prompts of all.
    """

    def __init__(self, loader: Iterable[PromptBatch], *, ranks: int = 1) -> None:
        """Nothing taken yet."""
        self._loader, self._ranks = loader, ranks
        self._start()

    def take(self, count: int) -> list[Prompt]:
        """The next ``count`` prompts.

        Raises:
            ValueError: the loader has none.
        """
        taken: list[Prompt] = []
        while len(taken) < count:
            if self._offset == len(self._batch):
                self._next_batch()
            more = self._batch[self._offset : self._offset + count - len(taken)]
            self._offset += len(more)
            taken += more
        return taken

    def state_dict(self) -> dict[str, Any]:
        """The loader's state before the batch that is being read, and how many of its prompts were taken."""
        return {"before": self._before, "offset": self._offset * self._ranks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind what had been taken.

        Raises:
            ValueError: that can't be dealt to so many ranks.
        """
        self._start()
        if state["before"] is None:
            return
        if state["offset"] % self._ranks:
            raise ValueError(
                f"the checkpoint was made behind prompt {state['offset']} of a batch, which can't be dealt to "
                f"{self._ranks} ranks: resume on a number of them that divides it"
            )
        if hasattr(self._loader, "load_state_dict"):
            self._loader.load_state_dict(state["before"])
        self._next_batch()
        self._offset = state["offset"] // self._ranks

    def _start(self) -> None:
        self._iterator: Iterator[PromptBatch] | None = None
        self._before: Any = None
        self._batch: list[Prompt] = []
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
        rows = zip(batch.ids.tolist(), batch.lengths.tolist(), batch.numbers.tolist(), batch.prompts, strict=True)
        # Rows of no tokens only fill up the last batch.
        self._batch = [Prompt(ids[:length], number, text) for ids, length, number, text in rows if length]
        self._offset = 0


class ExperienceLoader:
    """The train loader of PPO: a pass rolls out once and yields micro-batches, each as often as there are epochs.

    Args:
        prompts: what to answer.
        collect: (prompts, iteration) -> what was experienced.
        plan: how it is cut.
        seed: of the run, asked for when the first iteration begins.

    Attributes:
        iteration: the current one, from 0; -1 before the first.
        position: micro-batches of it that were handed out.
        metrics: of its rollout.
    """

    def __init__(
        self,
        prompts: Iterable[PromptBatch],
        collect: Callable[[list[Prompt], int], Collected],
        plan: BatchPlan,
        *,
        seed: Callable[[], int],
    ) -> None:
        """Nothing rolled out yet."""
        self.prompts, self.plan = PromptStream(prompts, ranks=plan.ranks), plan
        self._collect, self._seed = collect, seed
        self.iteration, self.position = -1, len(plan)
        self.metrics: dict[str, float] = {}
        self.experience: Experience | None = None

    def __len__(self) -> int:
        """Micro-batches of an iteration."""
        return len(self.plan)

    def __iter__(self) -> Iterator[ExperienceBatch]:
        """Go on with the iteration where it was left, or begin the next."""
        if self.position == len(self):
            self._begin()
        experience = self.experience
        if experience is None:
            return
        rows = self.plan.rows(experience.lengths.cpu().numpy(), seed=self._seed(), iteration=self.iteration)
        while self.position < len(self):
            self.position += 1
            yield self._batch(experience, rows[self.position - 1])

    def skip_rest(self) -> int:
        """Let the next pass begin a new iteration; returns how many micro-batches are left out."""
        left, self.position = len(self) - self.position, len(self)
        return left

    def state_dict(self) -> dict[str, Any]:
        """The place in the prompts and in the iteration, and what of its experience is still needed."""
        state = {"iteration": self.iteration, "position": self.position, "metrics": self.metrics}
        state |= {"plan": self.plan.identity, "prompts": self.prompts.state_dict(), "experience": None}
        if self.position < len(self) and self.experience is not None:
            state["experience"] = {name: tensor.cpu() for name, tensor in self.experience._asdict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was made, perhaps by another number of ranks.

        Raises:
            ValueError: it was made in the middle of an iteration, with settings that cut it otherwise.
        """
        kept = state["experience"]
        if kept is not None:
            for name, now in self.plan.identity.items():
                if state["plan"][name] != now:
                    raise ValueError(
                        f"the checkpoint is from the middle of an iteration with {name} {state['plan'][name]}, now it "
                        f"is {now}: resume with the same settings, or start anew from the model directory"
                    )
        self.iteration = state["iteration"]
        self.position = len(self) if kept is None else state["position"]
        self.metrics = dict(state["metrics"])
        self.experience = None if kept is None else Experience(**kept)
        self.prompts.load_state_dict(state["prompts"])

    def _begin(self) -> None:
        """Roll out; a failure leaves everything as it was."""
        before = self.prompts.state_dict()
        try:
            prompts = self.prompts.take(self.plan.episodes // (self.plan.group_size * self.plan.ranks))
            collected = self._collect(prompts, self.iteration + 1)
        except BaseException:
            self.prompts.load_state_dict(before)
            raise
        self.iteration += 1
        self.experience, self.metrics = collected
        self.position = len(self) if self.experience is None else 0

    def _batch(self, experience: Experience, rows: list[int]) -> ExperienceBatch:
        """The micro-batch of ``rows``, on the device of the experience."""
        chosen = torch.tensor(rows, device=experience.ids.device)
        lengths = experience.lengths[chosen].tolist()
        prompt_lengths = experience.prompt_lengths[chosen].tolist()
        ids, mask = experience.ids[chosen, : max(lengths)], experience.mask[chosen]
        tokens = {name: getattr(experience, name)[chosen][mask] for name in _PER_TOKEN}
        return ExperienceBatch(
            ids=ids,
            prompt_lengths=tuple(prompt_lengths),
            lengths=tuple(lengths),
            targets=response_tokens(ids, prompt_lengths, lengths),
            group_size=self.plan.unit,
            iteration=self.iteration,
            position=self.position - 1,
            **tokens,
        )

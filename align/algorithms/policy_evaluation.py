"""What a policy does on samples of its own: how far it went from the reference, how long it talks, whether it stops.

Legend: B prompts, N tokens of the longest response, D width, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from align.generation.responses import sample_responses
from align.generation.sampling import response_seed
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT
from align.rewards.functions import load_reward
from align.training.float64 import WideMetric, wide
from align.training.sharding import gathered

_ROWS = 64
"""Prompts that are answered together"""

_CHUNK = 256
"""Positions whose logits, of both networks, exist at once"""


@dataclass(frozen=True)
class ProbeConfig:
    """Samples of the policy's own, drawn at each validation.

    Raises:
        ValueError: a setting is impossible.
    """

    prompts: int = 64
    """Validation prompts that are answered, all ranks together; 0: none"""
    temperature: float = 1.0
    """Divides the logits of the samples, and of both networks in the KL"""
    max_new_tokens: int = 128
    """Longest response, tokens"""
    judge: str | None = None
    """What scores the responses: sandbox, module:function or a reward-model directory; None: nothing"""
    seed: int = 0
    """Of the samples, the same at each validation, so that only the network changes"""

    def __post_init__(self) -> None:
        """Reject impossible settings."""
        if self.prompts < 0:
            raise ValueError(f"probe.prompts is {self.prompts}: it must be at least 0")
        if not self.temperature > 0:
            raise ValueError(f"probe.temperature is {self.temperature}: it must be above 0")
        if self.max_new_tokens < 1:
            raise ValueError(f"probe.max_new_tokens is {self.max_new_tokens}: it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"probe.seed is {self.seed}: it must be at least 0")


class Probe(WideMetric):
    """Sums over sampled responses since the last reset, added over ranks.

    Give it every validation batch: it answers the first ``config.prompts`` different prompts and ignores the rest.
    """

    full_state_update = False
    kl: torch.Tensor
    reward: torch.Tensor
    responses: torch.Tensor
    tokens: torch.Tensor
    ended: torch.Tensor
    compared: torch.Tensor
    hashes: Any

    def __init__(self, config: ProbeConfig) -> None:
        """Start from nothing.

        Raises:
            ValueError: there is no such judge.
        """
        super().__init__()
        self.config = config
        self._judge: Callable[..., Sequence[float]] | None = load_reward(config.judge) if config.judge else None
        self._asked: set[tuple[int, ...]] = set()
        for name in ("kl", "reward"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("responses", "tokens", "ended", "compared"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("hashes", [], dist_reduce_fx="cat")

    def update(
        self, policy: GPT, reference: GPT | None, prompts: Sequence[Sequence[int]], texts: Sequence[str], tokenizer: Any
    ) -> None:
        """Answer those of the prompts that are new and still wanted.

        Args:
            policy: samples.
            reference: what it is compared with; None: no KL.
            prompts: B lists of ids, up to the assistant's turn; empty ones (rows that fill up a batch) are ignored, and
                those that leave no room to answer.
            texts: B prompts as text, for the judge.
            tokenizer: decodes, and knows what ends a response.
        """
        new = self._wanted(prompts, policy.config.context)
        # Ranks gather this list at the end, and each must have something in it.
        self.hashes.append(torch.zeros(0, dtype=torch.int64, device=self.responses.device))
        with gathered(policy) as policy, gathered(reference) as reference:
            for start in range(0, len(new), _ROWS):
                rows = new[start : start + _ROWS]
                self._answer(policy, reference, [prompts[row] for row in rows], [texts[row] for row in rows], tokenizer)

    def compute(self) -> dict[str, torch.Tensor]:
        """Values since the last reset.

        Returns:
            dict: ``kl`` nats per response (with a reference), ``length`` tokens per response, its stop token included,
            ``eos_rate`` share that a stop token ended, ``reward`` mean of the judge's scores (with a judge),
            ``distinct`` different responses per response. Empty where nothing was sampled.
        """
        if not self.responses:
            return {}
        hashes = torch.cat(list(self.hashes)) if isinstance(self.hashes, list) else self.hashes
        sums = {"length": self.tokens, "eos_rate": self.ended}
        sums |= {"kl": self.kl} if self.compared else {}
        sums |= {"reward": self.reward} if self._judge else {}
        sums |= {"distinct": torch.tensor(len(hashes.unique()), device=self.responses.device)}
        return {name: (value / self.responses).float() for name, value in sums.items()}

    def reset(self) -> None:
        """Start from nothing."""
        super().reset()
        self._asked = set()

    def _wanted(self, prompts: Sequence[Sequence[int]], context: int) -> list[int]:
        """Rows to answer on this rank."""
        alone = not (dist.is_available() and dist.is_initialized())
        ranks = 1 if alone else dist.get_world_size(self.process_group)
        share = -(-self.config.prompts // ranks)
        rows = []
        for row, prompt in enumerate(prompts):
            if len(self._asked) == share:
                break
            if 0 < len(prompt) < context and tuple(prompt) not in self._asked:
                self._asked.add(tuple(prompt))
                rows.append(row)
        return rows

    @torch.no_grad()
    def _answer(
        self, policy: GPT, reference: GPT | None, prompts: list[Sequence[int]], texts: list[str], tokenizer: Any
    ) -> None:
        config = self.config
        sampled = sample_responses(
            policy,
            tokenizer,
            prompts,
            SamplingConfig(temperature=config.temperature, max_new_tokens=config.max_new_tokens),
            # Seeded by the prompt itself, so that it doesn't matter which rank samples it.
            seeds=[response_seed(config.seed, *prompt) for prompt in prompts],
        )
        responses, lengths = sampled.ids, [len(ids) for ids in sampled.ids]
        self.responses += len(responses)
        self.tokens += sum(lengths)
        self.ended += sum(sampled.finished)
        self.hashes.append(torch.tensor([_hash(response) for response in responses], device=self.responses.device))
        if reference is not None:
            rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
            self.kl += wide(sampled_kl(policy, reference, rows, lengths, temperature=config.temperature).sum())
            self.compared += len(rows)
        if self._judge is not None:
            if (network := getattr(self._judge, "network", None)) is not None:
                network.to(policy.output_weight.device)
            self.reward += float(sum(self._judge(texts, sampled.texts)))


@torch.no_grad()
def sampled_kl(
    policy: GPT,
    reference: GPT,
    rows: Sequence[Sequence[int]],
    response_lengths: Sequence[int],
    *,
    temperature: float = 1.0,
) -> torch.Tensor:
    """KL(policy || reference) of responses that the policy sampled, nats each.

    At every token of a response the two distributions over the whole vocabulary are compared, and the KLs of a
    response's tokens are added. Its mean over samples is that of the sum of log(policy / reference) at the sampled
    tokens, with less variance: only the choice of the prefix is left to chance (Amini et al. 2025, arXiv:2504.10637).

    Args:
        policy: network.
        reference: network of the same vocabulary.
        rows: B lists of ids, prompt and response.
        response_lengths: B, tokens of each response, the end of its row.
        temperature: divides the logits of both.

    Returns:
        ``[B]`` float32, never negative beyond rounding.
    """
    device = policy.output_weight.device
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    ends = torch.tensor([len(row) for row in rows], device=device)[:, None]
    begins = ends - torch.tensor(response_lengths, device=device)[:, None]
    places = torch.arange(longest - 1, device=device)
    # The state at place t predicts the token at t + 1.
    read = (places >= begins - 1) & (places < ends - 1)
    states = [network.hidden(ids[:, :-1])[read] for network in (policy, reference)]
    totals = torch.zeros(len(rows), device=device)
    parts = list(_chunked_kl((policy, reference), states, temperature))
    return totals.index_add(0, read.nonzero()[:, 0], torch.cat(parts))


def _chunked_kl(networks: tuple[GPT, GPT], states: list[torch.Tensor], temperature: float) -> Iterator[torch.Tensor]:
    for hidden in zip(*(state.split(_CHUNK) for state in states), strict=True):
        ours, theirs = (
            (network.logits(h).float() / temperature).log_softmax(-1)
            for network, h in zip(networks, hidden, strict=True)
        )
        yield (ours.exp() * (ours - theirs)).sum(-1)


def _hash(ids: Sequence[int]) -> int:
    """63 bits of a response, to tell responses apart over ranks."""
    digest = hashlib.sha256(",".join(map(str, ids)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

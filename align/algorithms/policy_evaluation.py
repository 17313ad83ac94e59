"""Policy evaluation: KL to the reference, length, end rate and reward of responses to validation prompts.

Legend: B prompts, N tokens of the longest response, D width, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from align.generation.responses import Responses, sample_responses
from align.generation.sampled_ids import SampledIds
from align.generation.sampling import response_seed
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT
from align.objectives import distribution_kl
from align.rewards.functions import load_reward
from align.rewards.reward import Reward
from align.rewards.reward_model import models_in
from align.tokenizer.prompts import Columns, Prompt
from align.training.float64 import WideMetric, wide
from align.training.sharding import gathered

_ROWS = 64
"""Prompts per batch of samples"""

_MOST, _LEAST = 64, 8
"""Prompts that are responded to at most, and at least, where the recipe sets no number"""

_SHARE = 0.1
"""What policy evaluation may then cost, as a share of the training between two validations"""

_CHUNK = 256
"""Positions whose logits, of both networks, exist at the same time"""


@dataclass(frozen=True)
class PolicyEvaluationConfig:
    """Responses sampled from the policy at each validation.

    Raises:
        ValueError: a setting is invalid.
    """

    prompts: int | None = None
    """Validation prompts to respond to, over all ranks; 0: none; None: 64, in DPO fewer (at least 8) where training
    between two validations is short, so that policy evaluation costs about a tenth of it"""
    temperature: float = 1.0
    """Divides the logits when sampling, and those of both networks in the KL"""
    max_new_tokens: int = 128
    """Longest response, tokens"""
    judge: str | Reward | None = None
    """Reward that scores the responses: exact_answer, sandbox, module:function, class path of a Reward (its settings
    are its init_args) or a reward-model directory; None: no scores"""
    seed: int = 0
    """Seed of the samples, the same at each validation, so that only the network changes"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if self.prompts is not None and self.prompts < 0:
            raise ValueError(f"policy_evaluation.prompts is {self.prompts}: it must be at least 0, or null")
        if not self.temperature > 0:
            raise ValueError(f"policy_evaluation.temperature is {self.temperature}: it must be above 0")
        if self.max_new_tokens < 1:
            raise ValueError(f"policy_evaluation.max_new_tokens is {self.max_new_tokens}: it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"policy_evaluation.seed is {self.seed}: it must be at least 0")


class PolicyEvaluation(WideMetric):
    """Sums over sampled responses since the last reset, added over ranks.

    Update it with every validation batch: it samples responses to the first ``wanted`` distinct prompts.
    """

    full_state_update = False
    kl: torch.Tensor
    reward: torch.Tensor
    responses: torch.Tensor
    tokens: torch.Tensor
    ended: torch.Tensor
    compared: torch.Tensor
    hashes: Any

    def __init__(self, config: PolicyEvaluationConfig) -> None:
        """No responses yet.

        Raises:
            ValueError: there is no such judge.
        """
        super().__init__()
        self.config = config
        self.wanted = _MOST if config.prompts is None else config.prompts
        self._judge = None if config.judge is None else load_reward(config.judge)
        self._seen: set[tuple[int, ...]] = set()
        for name in ("kl", "reward"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("responses", "tokens", "ended", "compared"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("hashes", [], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(
        self,
        policy: GPT,
        reference: GPT | None,
        prompts: Sequence[Sequence[int]],
        contents: Sequence[Prompt],
        tokenizer: Any,
        *,
        columns: Sequence[Columns],
    ) -> None:
        """Sample responses to the prompts that are new and still wanted.

        Args:
            policy: samples.
            reference: to measure the KL to; None: no KL.
            prompts: B lists of ids, up to the assistant's turn; empty ones (rows that fill up a batch) and those that
                leave no room for a response are ignored.
            contents: B prompts, texts or messages, for the judge.
            tokenizer: decodes, and knows which tokens end a response.
            columns: B records, the columns that the judge reads.
        """
        new = self._wanted(prompts, policy.config.context)
        # Ranks gather this list at the end, so it must not be empty on any of them.
        self.hashes.append(torch.zeros(0, dtype=torch.int64, device=self.responses.device))
        with gathered(policy) as policy, gathered(reference) as reference:
            for start in range(0, len(new), _ROWS):
                rows = new[start : start + _ROWS]
                sampled = self._sample(policy, reference, [prompts[row] for row in rows], tokenizer)
                if self._judge is not None:
                    for model in models_in(self._judge):
                        model.network.to(policy.output_weight.device)
                    asked, records = [contents[row] for row in rows], [columns[row] for row in rows]
                    self.reward += float(sum(self._judge(asked, sampled.texts, records)))

    def bound_cost(self, trained_tokens: int, prompt_tokens: float) -> None:
        """Lower the number of prompts where the recipe sets none.

        A token of training costs three forward passes; so does one here, which is sampled and then read by the policy
        and its reference.

        Args:
            trained_tokens: between two validations, over all ranks.
            prompt_tokens: mean length of a prompt.
        """
        if self.config.prompts is None:
            response = prompt_tokens + self.config.max_new_tokens
            self.wanted = min(_MOST, max(_LEAST, int(_SHARE * trained_tokens / response)))

    def compute(self) -> dict[str, torch.Tensor]:
        """Values since the last reset.

        Returns:
            dict: ``kl`` nats per response (with a reference), ``length`` tokens per response, its stop token included,
            ``eos_rate`` share that ended with a stop token, ``reward`` mean of the judge's scores (with a judge),
            ``distinct`` distinct responses per response. Empty where nothing was sampled.
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
        """Forget all responses."""
        super().reset()
        self._seen = set()

    def _wanted(self, prompts: Sequence[Sequence[int]], context: int) -> list[int]:
        """Rows to respond to on this rank."""
        alone = not (dist.is_available() and dist.is_initialized())
        ranks = 1 if alone else dist.get_world_size(self.process_group)
        share = -(-self.wanted // ranks)
        rows = []
        for row, prompt in enumerate(prompts):
            if len(self._seen) == share:
                break
            if 0 < len(prompt) < context and tuple(prompt) not in self._seen:
                self._seen.add(tuple(prompt))
                rows.append(row)
        return rows

    def _sample(self, policy: GPT, reference: GPT | None, prompts: list[Sequence[int]], tokenizer: Any) -> Responses:
        """Sample responses, and add what needs no judge."""
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
            kl = sampled_kl(
                policy,
                reference,
                rows,
                lengths,
                temperature=config.temperature,
                sampled=SampledIds.of(tokenizer),
            )
            self.kl += wide(kl.sum())
            self.compared += len(rows)
        return sampled


@torch.no_grad()
def sampled_kl(
    policy: GPT,
    reference: GPT,
    rows: Sequence[Sequence[int]],
    response_lengths: Sequence[int],
    *,
    temperature: float = 1.0,
    sampled: SampledIds = SampledIds(),  # noqa: B008 (frozen)
) -> torch.Tensor:
    """KL(policy || reference) of responses that the policy sampled, nats each.

    ``distribution_kl`` at every token, added over the tokens of a response.

    Args:
        policy: that sampled.
        reference: of the same vocabulary.
        rows: B lists of ids, prompt and response.
        response_lengths: B, tokens of each response, at the end of its row.
        temperature: divides the logits of both.
        sampled: ids that can be sampled, by default all rows of the output matrices.

    Returns:
        ``[B]`` float32, never negative beyond rounding.
    """
    device = policy.output_weight.device
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    ends = torch.tensor([len(row) for row in rows], device=device)[:, None]
    begins = ends - torch.tensor(response_lengths, device=device)[:, None]
    positions = torch.arange(longest - 1, device=device)
    # The state at position t predicts the token at t + 1.
    read = (positions >= begins - 1) & (positions < ends - 1)
    ours, theirs = (network.hidden(ids[:, :-1])[read].split(_CHUNK) for network in (policy, reference))
    kl = [
        distribution_kl(
            sampled.columns(policy.logits(mine)), sampled.columns(reference.logits(other)), temperature=temperature
        )
        for mine, other in zip(ours, theirs, strict=True)
    ]
    return torch.zeros(len(rows), device=device).index_add(0, read.nonzero()[:, 0], torch.cat(kl))


def _hash(ids: Sequence[int]) -> int:
    """63 bits of a response, to count distinct responses over ranks."""
    digest = hashlib.sha256(",".join(map(str, ids)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

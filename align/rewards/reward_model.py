"""A reward model as a reward: of token ids in training, of texts elsewhere.

Legend: B rows, T tokens.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from align.io.adapter_directory import HEAD, Base, base_of, load_adapter, read_adapter
from align.io.directory import is_scalar, load_scalar
from align.io.families import family_in
from align.io.location import locate, read_fields
from align.io.manifest import is_adapter, read_manifest
from align.model.gpt import ScalarGPT
from align.rewards.reward import Reward, check_counts, checked_scores
from align.tokenizer import Tokenizer
from align.tokenizer.prompts import Columns, Prompt

_BATCH_TOKENS = 16_384
"""Tokens of one forward pass, padding included: enough to fill a GPU, little memory without a backward pass"""


class RewardModel(Reward):
    """A ScalarGPT with its tokenizer, whose scores are normalised with the mean and std of its manifest.

    The network is in eval mode and its parameters are frozen. This is not a module: a stage that scores on its own
    device makes ``network`` a submodule.

    Args:
        name: what errors call it.
        network: scores the last real token of a row.
        tokenizer: its own.
        mean: mean of the raw scores of the SFT policy's samples; subtracted.
        std: their standard deviation; divides the rest.
        whole_chats: it was trained on chats as the template renders them, including what follows the end of the last
            turn, such as a line break; otherwise on chats that end there, as the reward stage trains.
    """

    def __init__(
        self,
        name: str,
        network: ScalarGPT,
        tokenizer: Tokenizer,
        *,
        mean: float = 0.0,
        std: float = 1.0,
        whole_chats: bool = False,
    ) -> None:
        """Keep and freeze the network.

        Raises:
            ValueError: mean or std is not finite, or std is not above 0.
        """
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ValueError(
                f"{name}: reward_mean is {mean} and reward_std {std}; they must be finite, the latter above 0"
            )
        self.name, self.tokenizer, self.mean, self.std = name, tokenizer, mean, std
        self.whole_chats = whole_chats
        self.network = network.requires_grad_(False).eval()

    @classmethod
    def load(cls, source: str | Path, *, dtype: torch.dtype = torch.float32, onto: Base | None = None) -> "RewardModel":
        """Read a reward-model directory.

        Args:
            source: a directory that the reward stage or transformers wrote (the latter's scores are not normalised),
                see ``locate``; or a reward model's adapter.
            dtype: of the weights; scores are float32.
            onto: weights in memory to which an adapter is applied if they are its base, whatever their type.

        Raises:
            FileNotFoundError: there is no such directory, or its weights or its tokenizer are missing.
            ValueError: it is a language model, or ``load_scalar`` cannot read it.
        """
        if is_adapter(source):
            return cls._of_adapter(Path(source).expanduser(), dtype=dtype, onto=onto)
        directory = locate(source)
        fields = read_fields(directory)
        if not is_scalar(fields):
            raise ValueError(
                f"{directory}: a language model ({family_in(fields).architecture}), not a reward model; "
                "train one from it with the reward stage"
            )
        return cls._of(str(source), load_scalar(directory, dtype=dtype), directory)

    @classmethod
    def _of_adapter(cls, directory: Path, *, dtype: torch.dtype, onto: Base | None) -> "RewardModel":
        if HEAD not in read_adapter(directory).tensors:
            raise ValueError(
                f"{directory}: a language model's adapter, not a reward model's; train one with the reward stage, with "
                "lora"
            )
        return cls._of(str(directory), load_adapter(directory, ScalarGPT, dtype=dtype, onto=onto), directory)

    @classmethod
    def _of(cls, name: str, network: ScalarGPT, directory: Path) -> "RewardModel":
        """With the tokenizer of ``directory`` and the mean and standard deviation of its manifest."""
        foreign = not (directory / "align.json").is_file()
        manifest = {} if foreign else read_manifest(directory)
        tokens = directory if (directory / "tokenizer.json").is_file() else base_of(directory)
        mean, std = float(manifest.get("reward_mean", 0.0)), float(manifest.get("reward_std", 1.0))
        return cls(name, network, Tokenizer.load(tokens), mean=mean, std=std, whole_chats=foreign)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a policy with another tokenizer.

        Args:
            tokenizer: the policy's.

        Raises:
            ValueError: the fingerprints differ.
        """
        ours, theirs = self.tokenizer.fingerprint, tokenizer.fingerprint
        if ours != theirs:
            raise ValueError(
                f"reward {self.name!r} reads the ids of tokenizer {ours[:12]}, the policy writes those of "
                f"{theirs[:12]}: train the reward model from the same SFT model as the policy"
            )

    @torch.no_grad()
    def score_ids(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Normalised scores of rows, in batches of similar length.

        Args:
            ids: ``[B, T]`` int64, prompt and response, right-padded, on any device.
            lengths: ``[B]`` int64, tokens of each row; rows of 0 tokens are not scored.

        Returns:
            ``[B]`` float32 on the device of ``ids``; 0, the mean of the SFT policy, for rows of 0 tokens.

        Raises:
            ValueError: a row is longer than the network's context.
        """
        device = self.network.score.weight.device
        counts, order = lengths.cpu().sort(descending=True)
        rows = int((counts > 0).sum())
        scores = torch.zeros(len(ids), dtype=torch.float32, device=ids.device)
        start = 0
        while start < rows:
            width = int(counts[start])
            stop = min(rows, start + max(1, _BATCH_TOKENS // width))
            chosen = order[start:stop].to(ids.device)
            batch, count = ids[chosen, :width].to(device), counts[start:stop].to(device)
            # The trainer's autocast would round the hidden states.
            with torch.autocast(device.type, enabled=False):
                raw = self.network.last_scores(batch, count)
            scores[chosen] = ((raw - self.mean) / self.std).to(scores)
            start = stop
        return scores

    def encode(self, prompt: Prompt, response: str) -> list[int]:
        """The ids of a prompt and its response, as preference data renders them; see ``whole_chats``.

        A row that exceeds the context is truncated: the prompt at its start, except for BOS; then the response at its
        end.

        Args:
            prompt: a text is a user message.
            response: complete; the end of the turn is added.

        Raises:
            ValueError: the tokenizer has no chat template, or one without an end of turn.
        """
        tokenizer, context = self.tokenizer, self.network.config.context
        messages: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if self.whole_chats:
            whole = tokenizer.render_chat([*messages, {"role": "assistant", "content": response}]).ids
            if len(whole) <= context:
                return whole
        end = tokenizer.end_of_turn_id
        if end is None:
            raise ValueError(f"reward {self.name!r}: its tokenizer has no chat template that ends an assistant's turn")
        asked = tokenizer.render_chat(cast("Sequence[Mapping[str, str]]", messages), add_generation_prompt=True).ids
        answered = [*tokenizer.encode(response), end]
        if len(asked) + len(answered) <= context:
            return asked + answered
        opening = asked[:1] if asked[0] == tokenizer.bos_id else []
        room = max(1, context - len(opening) - len(answered))  # the last token opens the assistant's turn
        return [*opening, *asked[len(opening) :][-room:], *answered][:context]

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Sequence[Columns] = ()
    ) -> list[float]:
        """See ``Reward``; an error of the network itself is raised as it is."""
        check_counts(self.name, prompts, responses)
        return checked_scores(self.name, self.score(prompts, responses), responses) if responses else []

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Normalised scores of texts; see ``Reward``."""
        rows = [self.encode(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for line, row in zip(ids, rows, strict=True):
            line[: len(row)] = torch.tensor(row)
        return self.score_ids(ids, lengths).tolist()


def models_in(reward: Reward) -> tuple[RewardModel, ...]:
    """The reward model that a loaded reward is, or those among the parts of a weighted sum."""
    if isinstance(reward, RewardModel):
        return (reward,)
    parts = [part.reward for part in reward.summed.values()]
    return tuple(model for part in parts if isinstance(part, Reward) for model in models_in(part))

"""A GPT whose head gives one number a token instead of logits: reward models and value models.

Legend: B rows, T tokens, D width.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from align.model.cache import KVCache
from align.model.config import GPTConfig
from align.model.directory import built_without_memory, fill, is_scalar, locate, read_fields
from align.model.families import config_from
from align.model.four_bit import numbers
from align.model.gpt import GPT, matrix_flops
from align.model.shared_prefix import SharedRows


class ScalarGPT(nn.Module):
    """The trunk of a GPT under a head ``[1, D]`` without bias, named as in Hugging Face's sequence classifiers.

    A fresh network has the trunk of a fresh GPT and the head of seed 0.
    """

    def __init__(self, config: GPTConfig) -> None:
        """Build the network of ``config`` on torch's default device; whether embeddings are tied says nothing here."""
        super().__init__()
        self.config = config
        self.model = GPT(config).model
        self.score = nn.Linear(config.width, 1, bias=False)
        if not self.score.weight.is_meta:
            self.initialise_head(0)

    @torch.no_grad()
    def initialise_head(self, seed: int) -> None:
        """Draw the head afresh, normal with std 1 / sqrt(D + 1) (Stiennon et al. 2020, appendix B).

        Args:
            seed: decides it; no global generator is touched.
        """
        generator = torch.Generator(device=self.score.weight.device).manual_seed(seed)
        self.score.weight.normal_(0.0, (self.config.width + 1) ** -0.5, generator=generator)

    def hidden(
        self,
        ids: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
        cache: KVCache | None = None,
        rows: SharedRows | None = None,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states ``[B, T, D]`` after the final norm, or ``[R, D]`` at ``places``; see ``GPT.hidden``."""
        return self.model(ids, positions=positions, documents=documents, cache=cache, rows=rows, places=places)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """One score a hidden state.

        In float32 even under autocast: bfloat16 keeps 8 bits, and what counts is the difference of two scores.

        Args:
            hidden: ``[..., D]``.

        Returns:
            ``[...]`` float32; float64 of a float64 network.
        """
        wide = torch.promote_types(self.score.weight.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(wide), self.score.weight.to(wide)).squeeze(-1)

    def last_scores(self, ids: torch.Tensor, lengths: torch.Tensor, rows: SharedRows | None = None) -> torch.Tensor:
        """The score of each row at its last real token, which alone has read the whole row.

        Right padding needs no mask: the last real token cannot see it.

        Args:
            ids: ``[B, T]`` int64, right-padded.
            lengths: ``[B]`` int64, tokens of each row; where it is 0 the score means nothing.
            rows: compute the rows as one line, as laid out by ``share_prefixes``; the same numbers to rounding.

        Returns:
            ``[B]`` float32; float64 of a float64 network.
        """
        row, last = torch.arange(len(lengths), device=lengths.device), (lengths - 1).clamp(min=0)
        if rows is None:
            return self.scores(self.model(ids, places=row * ids.shape[1] + last))
        return self.scores(self.model(rows.line(ids), rows=rows, places=rows.tokens_at(row, last)))

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """See ``last_scores``."""
        return self.last_scores(ids, lengths)

    def num_parameters(self) -> int:
        """Parameters, each counted once, adapters left out."""
        return sum(numbers(parameter) for name, parameter in self.named_parameters() if ".lora_" not in name)

    def flops_per_token(self, context: int, *, forward_only: bool = False) -> int:
        """FLOPs of forward and backward per trained token of ``last_scores``; see ``GPT.flops_per_token``.

        The last block's output projection and feed-forward, and the head, run once a row and are left out.

        Args:
            context: T, tokens a row is trained on.
            forward_only: leave the backward pass out.

        Returns:
            FLOPs (a multiply-add is two).
        """
        config = self.config
        once = tuple(f"{config.layers - 1}.{part}" for part in ("self_attn.o_proj", "mlp"))
        matrices = [p for name, p in self.model.layers.named_parameters() if p.dim() == 2 and not name.startswith(once)]
        attention = 12 * config.layers * config.heads * config.resolved_head_width * context
        return matrix_flops(matrices, forward_only) + attention // (3 if forward_only else 1)


def load_scalar(source: str | Path, *, dtype: torch.dtype = torch.float32, head_seed: int = 0) -> ScalarGPT:
    """The reward model of a directory, or a language model's trunk under a fresh head; on the CPU, in training mode.

    Args:
        source: a directory of ours or of Hugging Face, or a Hub id; see ``locate``.
        dtype: what the weights are converted to.
        head_seed: decides the fresh head; not read where the directory has a head.

    Raises:
        FileNotFoundError: the directory or a weight file is missing.
        ValueError: the configuration is not supported (another number of labels than 1, for one), a file is damaged,
            or a tensor is missing, surplus or of another shape; the line names file and tensor.
    """
    directory = locate(source)
    fields = read_fields(directory)
    with built_without_memory():
        network = ScalarGPT(config_from(fields))
    if is_scalar(fields):
        fill(network, directory, fields, dtype=dtype)
        return network
    fill(network, directory, fields, dtype=dtype, ignored=("lm_head.weight",), fresh=("score.weight",))
    # The head is drawn in float32, so that a seed gives the same head whatever the dtype.
    network.score = nn.Linear(network.config.width, 1, bias=False)
    network.initialise_head(head_seed)
    network.score.to(dtype)
    return network

"""The GPT: token ids to hidden states to logits.

Legend: B rows, T tokens, V vocabulary, L layers, H query heads, E width of one head, D width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from align.model.config import GPTConfig
from align.model.four_bit import numbers
from align.model.kv_cache import KVCache
from align.model.layers import (
    Block,
    Context,
    at,
    attend_fast,
    attend_reference,
    cache_mask,
    document_mask,
    make_norm,
    rotary_frequencies,
    rotary_tables,
    sinusoidal_embedding,
)
from align.model.packing import SharedRows


class Trunk(nn.Module):
    """Embeddings, blocks and the final norm: everything below the output matrix.

    With post-norm placement there is no final norm: the last block already ends in one.
    """

    def __init__(self, config: GPTConfig) -> None:
        """Build the layers."""
        super().__init__()
        self.config = config
        self.reference_attention = False
        self.widths: tuple[int, ...] = ()  # of rows, ascending, that the blocks are compiled for
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.context, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = make_norm(config) if config.norm_placement == "pre" else None

    def embed(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Token embeddings plus absolute positions, if the network has any.

        Sinusoids have amplitude 1, so beside them embeddings are multiplied by sqrt(D), as their paper does.

        Args:
            ids: ``[..., T]`` int64.
            positions: int64, broadcastable to ``ids``.

        Returns:
            ``[..., T, D]``.
        """
        x = self.embed_tokens(ids)
        if self.config.positions == "learned":
            return x + self.embed_positions(positions)
        if self.config.positions == "sinusoidal":
            return x * self.config.width**0.5 + sinusoidal_embedding(positions, self.config.width).to(x.dtype)
        return x

    def rotary(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rotary tables ``[..., T, E / 2]`` of ``positions`` ``[..., T]``, or None without rope."""
        config = self.config
        if config.positions != "rope":
            return None
        frequencies = rotary_frequencies(
            config.resolved_head_width, theta=config.rope_theta, scaling=config.rope_scaling, device=positions.device
        )
        return rotary_tables(positions, frequencies)

    def forward(
        self,
        ids: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
        cache: KVCache | None = None,
        rows: SharedRows | None = None,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See ``GPT.hidden``."""
        if ids.dim() != 2:
            raise ValueError(f"ids has shape {tuple(ids.shape)}; it must be [rows, tokens]")
        tokens = ids.shape[1] if rows is None else rows.width
        if tokens > self.config.context:
            raise ValueError(f"{tokens} tokens do not fit the network's context of {self.config.context}")
        if cache is not None and (positions is None or documents is not None):
            raise ValueError("with a cache, positions must be given (they are its slots) and documents must not")
        if rows is not None and (positions is not None or documents is not None or cache is not None):
            raise ValueError("shared rows bring their own positions and go with neither documents nor a cache")
        if rows is not None:
            positions = rows.positions
        if self.compiles and rows is None and cache is None:
            return self._at_fixed_width(ids, positions, documents, places)
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        return self._run(ids, positions, documents, cache, rows, places)

    @property
    def compiles(self) -> bool:
        """Whether a plain forward now runs compiled: only where gradients are wanted; see ``compile_blocks``."""
        return bool(self.widths) and torch.is_grad_enabled()

    def _at_fixed_width(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor | None,
        documents: torch.Tensor | None,
        places: torch.Tensor | None,
    ) -> torch.Tensor:
        """``forward`` of rows padded on the right, where nobody sees it, to the next of ``widths``."""
        length = ids.shape[1]
        width = next((width for width in self.widths if width >= length), length)
        more = (0, width - length)
        positions = torch.arange(width, device=ids.device) if positions is None else F.pad(positions, more)
        documents = None if documents is None else F.pad(documents, more, value=-1)
        x = self._run(F.pad(ids, more), positions, documents, None, None, None, fixed_shapes=True)
        if places is None:
            return x[:, :length]
        return at(x, places // length * width + places % length)

    def _run(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        documents: torch.Tensor | None,
        cache: KVCache | None,
        rows: SharedRows | None,
        places: torch.Tensor | None,
        *,
        fixed_shapes: bool = False,
    ) -> torch.Tensor:
        """Embeddings, blocks, final norm."""
        mask = None
        if documents is not None:
            mask = document_mask(documents)
        elif cache is not None:
            mask = cache_mask(positions, cache.length)
        # A row of positions needs an axis for the heads.
        rotary = self.rotary(positions if positions.dim() == 1 else positions[:, None])
        attend = attend_reference if self.reference_attention else attend_fast
        if rows is not None:
            attend = rows.attending(attend)
        context = Context(attend, mask, rotary, positions, cache, fixed_shapes)
        x = self.embed(ids, positions)
        *others, final = self.layers
        for layer in others:
            x = layer(x, context)
        x = final(x, context, places)
        return x if self.norm is None else self.norm(x)


class GPT(nn.Module):
    """A decoder-only transformer. Parameters are named as in Hugging Face's Llama for every style.

    A fresh network is initialised with seed 0; ``initialise`` draws it again with another. Set
    ``model.reference_attention`` to compute attention the readable way instead of the fast one.
    """

    def __init__(self, config: GPTConfig) -> None:
        """Build the network of ``config`` on torch's default device."""
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = None if config.tied_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        if not self.model.embed_tokens.weight.is_meta:
            self.initialise(0)

    @property
    def output_weight(self) -> torch.Tensor:
        """The output matrix ``[V, D]``: the head, or the token embedding when tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

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
        """Hidden states after the final norm. Right padding needs no mask: nobody before it can see it.

        Args:
            ids: ``[B, T]`` int64.
            positions: ``[T]`` or ``[B, T]`` int64, each token's place in its own document; None means 0..T-1.
            documents: ``[B, T]`` int64, the token's document within its row, -1 on padding: attention stays inside a
                document. Positions of packed rows are the caller's (absolute embeddings need them).
            cache: keys and values of earlier tokens; the new ones are written to the slots ``positions``.
            rows: ids is one line ``[1, N]`` of the tokens of several rows; see ``share_prefixes``.
            places: ``[R]`` int64, the tokens whose states are wanted, ``b * T + t``; of the others the last block only
                computes keys, values and queries. None means all.

        Returns:
            ``[B, T, D]``, or ``[R, D]`` with ``places``.

        Raises:
            ValueError: more tokens than the context, a cache without positions or with documents, or rows with either.
        """
        return self.model(ids, positions=positions, documents=documents, cache=cache, rows=rows, places=places)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the next token: ``hidden`` ``[..., D]`` to ``[..., V]``."""
        return F.linear(hidden, self.output_weight) if self.lm_head is None else self.lm_head(hidden)

    def forward(
        self,
        ids: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
        cache: KVCache | None = None,
        rows: SharedRows | None = None,
    ) -> torch.Tensor:
        """Logits ``[B, T, V]`` of every position; arguments as in ``hidden``."""
        return self.logits(self.hidden(ids, positions=positions, documents=documents, cache=cache, rows=rows))

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw every parameter afresh, touching no global generator.

        Matrices are normal with ``init_std``, the token embedding with ``embedding_std``; the two projections of a
        block into the residual stream are divided by sqrt(2 L), so that the sum of 2 L of them has the variance of
        one (GPT-2, section 2.3). Norms start at 1, biases at 0. The same seed gives the same weights on one kind of
        device.

        Args:
            seed: decides all of them.
        """
        config = self.config
        generator = torch.Generator(device=self.output_weight.device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            std = config.init_std
            if name == "model.embed_tokens.weight":
                std = config.embedding_std
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= (2 * config.layers) ** 0.5
            parameter.normal_(0.0, std, generator=generator)

    def num_parameters(self, *, embeddings: bool = True) -> int:
        """Parameters, each counted once, adapters left out.

        Args:
            embeddings: False leaves out the token and position embeddings, and with them a tied output matrix.
        """
        return sum(
            numbers(parameter)
            for name, parameter in self.named_parameters()
            if ".lora_" not in name and (embeddings or ".embed_" not in name)
        )

    def flops_per_token(self, context: int, *, forward_only: bool = False) -> int:
        """FLOPs of forward and backward per trained token, ``6 N + 12 L (H E) T`` (PaLM, arXiv:2204.02311, appendix B).

        N counts the parameters of matrix products: all matrices of the blocks and the output matrix once, tied or
        not; those frozen under adapters count 4 each, as they have no gradient of their own. The attention term does
        not discount causality. Embedding look-ups, norms and softmax are left out.

        Args:
            context: T, tokens a row is trained on.
            forward_only: no backward pass: 2 for each parameter, and a third of the attention term.

        Returns:
            FLOPs (a multiply-add is two).
        """
        matrices = [p for p in self.model.layers.parameters() if p.dim() == 2]
        inner = self.config.heads * self.config.resolved_head_width
        attention = 12 * self.config.layers * inner * context
        return matrix_flops([*matrices, self.output_weight], forward_only) + attention // (3 if forward_only else 1)


def matrix_flops(matrices: Sequence[torch.Tensor], forward_only: bool) -> int:
    """FLOPs of matrix products per token: 2 a parameter forward; back 2 for what was multiplied and 2 for itself.

    Args:
        matrices: that a token is multiplied by. Where some of them learn, the others have no gradient.
        forward_only: leave the backward pass out.
    """
    if forward_only:
        return 2 * sum(numbers(matrix) for matrix in matrices)
    some_learn = any(matrix.requires_grad for matrix in matrices)
    return sum((6 if matrix.requires_grad or not some_learn else 4) * numbers(matrix) for matrix in matrices)


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

"""The GPT: token ids to hidden states to logits.

Legend: B rows, T tokens, V vocabulary, L layers, H query heads, E width of one head, D width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from align.model.attention import (
    Attend,
    attend_fast,
    attend_reference,
    cache_mask,
    document_mask,
    narrow,
    soft_capped,
)
from align.model.config import GPTConfig
from align.model.four_bit import numel
from align.model.kv_cache import KVCache
from align.model.layers import Block, Context, make_norm, select_tokens
from align.model.packing import SharedRows
from align.model.positions import Tables, rotary_frequencies, rotary_tables, sinusoidal_embedding


class Trunk(nn.Module):
    """Embeddings, blocks and the final norm: everything except the output matrix.

    Post-norm networks have no final norm, because the last block already ends in one.
    """

    if TYPE_CHECKING:
        # nn.Module's makes every name an attribute: without this no wrong one would be found.
        __getattr__: None  # type: ignore[assignment,misc]

    def __init__(self, config: GPTConfig) -> None:
        """Build the layers."""
        super().__init__()
        self.config = config
        self.reference_attention = False
        self.widths: tuple[int, ...] = ()  # row widths, ascending, that the blocks are compiled for
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.context, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = None if config.norm_placement == "post" else make_norm(config)

    def embed(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Token embeddings plus absolute positions, if the network has any.

        With sinusoidal positions, whose amplitude is 1, embeddings are multiplied by sqrt(D), as in their paper, and
        with ``scale_embeddings`` too.

        Args:
            ids: ``[..., T]`` int64.
            positions: int64, broadcastable to ``ids``.

        Returns:
            ``[..., T, D]``.
        """
        x = self.embed_tokens(ids)
        if self.config.scale_embeddings:
            x = x * torch.tensor(self.config.width**0.5, dtype=x.dtype, device=x.device)
        if self.config.positions == "learned":
            return x + self.embed_positions(positions)
        if self.config.positions == "sinusoidal":
            return x * self.config.width**0.5 + sinusoidal_embedding(positions, self.config.width).to(x.dtype)
        return x

    def rotary(self, positions: torch.Tensor, *, windowed: bool = False) -> Tables | None:
        """RoPE tables ``[..., T, N / 2]`` of ``positions`` ``[..., T]``, or None without rope.

        Args:
            positions: int64.
            windowed: of the blocks with a window, which may have a base of their own.
        """
        config = self.config
        if config.positions != "rope":
            return None
        local = config.window_rope_theta if windowed else None
        scaling = config.rope_scaling if local is None else None
        theta = config.rope_theta if local is None else local
        frequencies = rotary_frequencies(config.rotated_width, theta=theta, scaling=scaling, device=positions.device)
        cos, sin = rotary_tables(positions, frequencies)
        amplitude = 1.0 if scaling is None else scaling.amplitude
        return (cos, sin) if amplitude == 1.0 else (cos * amplitude, sin * amplitude)

    def forward(
        self,
        ids: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
        cache: KVCache | None = None,
        rows: SharedRows | None = None,
        indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See ``GPT.hidden``."""
        if ids.dim() != 2:
            raise ValueError(f"ids has shape {tuple(ids.shape)}; it must be [rows, tokens]")
        tokens = ids.shape[1] if rows is None else rows.width
        if tokens > self.config.context:
            raise ValueError(f"{tokens} tokens exceed the network's context of {self.config.context}")
        if cache is not None and (positions is None or documents is not None):
            raise ValueError("with a cache, positions (its slots) are required and documents are not supported")
        if rows is not None and (positions is not None or documents is not None or cache is not None):
            raise ValueError("shared rows have positions of their own and support neither documents nor a cache")
        if rows is not None:
            positions = rows.positions
        if self.compiles and rows is None and cache is None:
            return self._at_fixed_width(ids, positions, documents, indices)
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        return self._run(ids, positions, documents, cache, rows, indices)

    @property
    def compiles(self) -> bool:
        """Whether a forward pass now runs compiled: only with gradients; see ``compile_blocks``."""
        return bool(self.widths) and torch.is_grad_enabled()

    def _at_fixed_width(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor | None,
        documents: torch.Tensor | None,
        indices: torch.Tensor | None,
    ) -> torch.Tensor:
        """``forward`` of rows padded on the right to the next of ``widths``; no token sees the padding."""
        length = ids.shape[1]
        width = next((width for width in self.widths if width >= length), length)
        padding = (0, width - length)
        positions = torch.arange(width, device=ids.device) if positions is None else F.pad(positions, padding)
        documents = None if documents is None else F.pad(documents, padding, value=-1)
        x = self._run(F.pad(ids, padding), positions, documents, None, None, None, fixed_shapes=True)
        if indices is None:
            return x[:, :length]
        return select_tokens(x, indices // length * width + indices % length)

    def _run(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        documents: torch.Tensor | None,
        cache: KVCache | None,
        rows: SharedRows | None,
        indices: torch.Tensor | None,
        *,
        fixed_shapes: bool = False,
    ) -> torch.Tensor:
        """Run embeddings, blocks and final norm."""
        config = self.config
        mask, slots, index = None, ids.shape[1], torch.arange(ids.shape[1], device=ids.device)
        if documents is not None:
            mask = document_mask(documents)
        elif cache is not None:
            mask, slots, index = cache_mask(positions, cache.length), cache.length, positions
        elif rows is not None:
            slots, index = rows.width, torch.arange(rows.width, device=ids.device)
        # Positions per row need an axis for the heads.
        spread = positions if positions.dim() == 1 else positions[:, None]
        rotary = window_rotary = self.rotary(spread)
        if config.window_rope_theta is not None:
            window_rotary = self.rotary(spread, windowed=True)
        window_mask = mask if config.window is None else narrow(mask, config.window, index, slots)
        attend: Attend = attend_reference if self.reference_attention else attend_fast
        if rows is not None:
            attend = rows.attending(attend)
        context = Context(attend, mask, window_mask, rotary, window_rotary, positions, cache, fixed_shapes)
        x = self.embed(ids, positions)
        *others, final = self.layers
        for layer in others:
            x = layer(x, context)
        x = final(x, context, indices)
        return x if self.norm is None else self.norm(x)


class GPT(nn.Module):
    """A decoder-only transformer; parameters have Hugging Face's Llama names whatever the configuration.

    A new network is initialised with seed 0; ``initialise`` does it again with another. Set
    ``model.reference_attention`` to use ``attend_reference`` instead of the fused kernels.
    """

    if TYPE_CHECKING:
        # nn.Module's makes every name an attribute: without this no wrong one would be found.
        __getattr__: None  # type: ignore[assignment,misc]

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

    @property
    def softcap(self) -> float | None:
        """Soft cap of the logits, which whoever multiplies by ``output_weight`` must apply; None: none."""
        return self.config.logit_softcap

    def hidden(
        self,
        ids: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
        cache: KVCache | None = None,
        rows: SharedRows | None = None,
        indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states after the final norm. Right padding needs no mask, because no earlier token sees it.

        Args:
            ids: ``[B, T]`` int64.
            positions: ``[T]`` or ``[B, T]`` int64, each token's position in its own document; None means 0..T-1.
            documents: ``[B, T]`` int64, index of the token's document within its row, -1 on padding: attention stays
                within a document. The caller sets the positions of packed rows (absolute embeddings need them).
            cache: keys and values of earlier tokens; new ones are written to the slots ``positions``.
            rows: ids is one packed sequence ``[1, N]`` of the tokens of several rows; see ``share_prefixes``.
            indices: ``[R]`` int64, the tokens whose states are needed, ``b * T + t``; for the others the last block
                only computes queries, keys and values. None means all.

        Returns:
            ``[B, T, D]``, or ``[R, D]`` with ``indices``.

        Raises:
            ValueError: more tokens than the context, a cache without positions or with documents, or rows with either.
        """
        return self.model(ids, positions=positions, documents=documents, cache=cache, rows=rows, indices=indices)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the next token: ``hidden`` ``[..., D]`` to ``[..., V]``."""
        logits = F.linear(hidden, self.output_weight) if self.lm_head is None else self.lm_head(hidden)
        return soft_capped(logits, self.softcap)

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
        """Initialise every parameter, without using the global generator.

        Matrices are normal with ``init_std``, the token embedding with ``embedding_std``; the two projections of a
        block into the residual stream are divided by sqrt(2 L), so that the sum of 2 L of them has the variance of
        one (GPT-2, section 2.3). Norms start as the identity, biases at 0. A seed gives the same weights on the same
        kind of device.

        Args:
            seed: of the random numbers.
        """
        config = self.config
        generator = torch.Generator(device=self.output_weight.device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") or config.norm_offset else 1.0)
                continue
            std = config.init_std
            if name == "model.embed_tokens.weight":
                std = config.embedding_std
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= (2 * config.layers) ** 0.5
            parameter.normal_(0.0, std, generator=generator)

    def num_parameters(self, *, embeddings: bool = True) -> int:
        """Number of parameters, tied ones counted once, adapters excluded.

        Args:
            embeddings: False excludes the token and position embeddings, and with them a tied output matrix.
        """
        return sum(
            numel(parameter)
            for name, parameter in self.named_parameters()
            if ".lora_" not in name and (embeddings or ".embed_" not in name)
        )

    def flops_per_token(self, context: int, *, forward_only: bool = False) -> int:
        """Training FLOPs per token, ``6 N + 12 L (H E) T`` (PaLM, arXiv:2204.02311, appendix B).

        N counts parameters of matrix products: the matrices of the blocks and the output matrix, tied or not; those
        frozen under adapters count 4 instead of 6, as they have no gradient. The attention term ignores causality.
        Embedding lookups, norms and softmax are excluded.

        Args:
            context: T, tokens per row.
            forward_only: exclude the backward pass: 2 per parameter, and a third of the attention term.

        Returns:
            FLOPs (a multiply-add is two).
        """
        matrices = [p for p in self.model.layers.parameters() if p.dim() == 2]
        return matrix_flops([*matrices, self.output_weight], forward_only) + attention_flops(
            self.config, context, forward_only=forward_only
        )


def attention_flops(config: GPTConfig, context: int, *, forward_only: bool = False) -> int:
    """FLOPs of attention's scores and mixtures per token, ``12 H E`` for each token that it may attend to.

    Args:
        config: of the network.
        context: T, tokens per row.
        forward_only: exclude the backward pass: a third.
    """
    attended = sum(min(context, config.window_of(layer) or context) for layer in range(config.layers))
    return (4 if forward_only else 12) * config.heads * config.resolved_head_width * attended


def matrix_flops(matrices: Sequence[torch.Tensor], forward_only: bool) -> int:
    """FLOPs of matrix products per token: 2 per parameter forward, 2 for the input gradient, 2 for the weight gradient.

    Args:
        matrices: that each token is multiplied by. If some require gradients, the others have no weight gradient.
        forward_only: exclude the backward pass.
    """
    if forward_only:
        return 2 * sum(numel(matrix) for matrix in matrices)
    some_trained = any(matrix.requires_grad for matrix in matrices)
    return sum((6 if matrix.requires_grad or not some_trained else 4) * numel(matrix) for matrix in matrices)


class ScalarGPT(nn.Module):
    """The trunk of a GPT with a scalar head ``[1, D]`` without bias, named as in Hugging Face's sequence classifiers.

    A new network has the trunk of a new GPT, and a head of seed 0.
    """

    if TYPE_CHECKING:
        # nn.Module's makes every name an attribute: without this no wrong one would be found.
        __getattr__: None  # type: ignore[assignment,misc]

    def __init__(self, config: GPTConfig) -> None:
        """Build the network of ``config`` on torch's default device; ``tied_embeddings`` has no effect."""
        super().__init__()
        self.config = config
        self.model = GPT(config).model
        self.score = nn.Linear(config.width, 1, bias=False)
        if not self.score.weight.is_meta:
            self.initialise_head(0)

    @torch.no_grad()
    def initialise_head(self, seed: int) -> None:
        """Initialise the head, normal with std 1 / sqrt(D + 1) (Stiennon et al. 2020, appendix B).

        Args:
            seed: of the random numbers; the global generator is not used.
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
        indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states ``[B, T, D]`` after the final norm, or ``[R, D]`` at ``indices``; see ``GPT.hidden``."""
        return self.model(ids, positions=positions, documents=documents, cache=cache, rows=rows, indices=indices)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """One score per hidden state.

        In float32 even under autocast: bfloat16 has 8 bits of precision, too few for differences of scores.

        Args:
            hidden: ``[..., D]``.

        Returns:
            ``[...]`` float32; float64 for a float64 network.
        """
        wide = torch.promote_types(self.score.weight.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(wide), self.score.weight.to(wide)).squeeze(-1)

    def last_scores(self, ids: torch.Tensor, lengths: torch.Tensor, rows: SharedRows | None = None) -> torch.Tensor:
        """The score of each row at its last real token, the only one that sees the whole row.

        Right padding needs no mask, because the last real token does not see it.

        Args:
            ids: ``[B, T]`` int64, right-padded.
            lengths: ``[B]`` int64, tokens of each row; the score of an empty row is undefined.
            rows: compute the rows as one packed sequence, from ``share_prefixes``; equal up to rounding.

        Returns:
            ``[B]`` float32; float64 for a float64 network.
        """
        row, last = torch.arange(len(lengths), device=lengths.device), (lengths - 1).clamp(min=0)
        if rows is None:
            return self.scores(self.model(ids, indices=row * ids.shape[1] + last))
        return self.scores(self.model(rows.line(ids), rows=rows, indices=rows.tokens_at(row, last)))

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """See ``last_scores``."""
        return self.last_scores(ids, lengths)

    def num_parameters(self) -> int:
        """Number of parameters, adapters excluded."""
        return sum(numel(parameter) for name, parameter in self.named_parameters() if ".lora_" not in name)

    def flops_per_token(self, context: int, *, forward_only: bool = False) -> int:
        """Training FLOPs per token of ``last_scores``; see ``GPT.flops_per_token``.

        The last block's output projection and feed-forward layer, and the head, run once per row and are excluded.

        Args:
            context: T, tokens per row.
            forward_only: exclude the backward pass.

        Returns:
            FLOPs (a multiply-add is two).
        """
        config = self.config
        once = tuple(f"{config.layers - 1}.{part}" for part in ("self_attn.o_proj", "mlp"))
        matrices = [p for name, p in self.model.layers.named_parameters() if p.dim() == 2 and not name.startswith(once)]
        return matrix_flops(matrices, forward_only) + attention_flops(config, context, forward_only=forward_only)

"""How the network knows a token's place: rotary tables and sinusoidal embeddings.

Legend: B rows, T tokens, H heads, D width, E width of one head. Tables are computed in float32 from whole positions
at every forward, never kept as buffers: nothing to cast to bfloat16, to forget on the meta device or to outgrow.
"""

import math

import torch

from align.model.config import RopeScaling


def rotary_frequencies(
    head_width: int, *, theta: float, scaling: RopeScaling | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """Angles per position of the rotated pairs, ``theta ** (-2 i / E)`` (RoFormer, arXiv:2104.09864).

    With ``scaling``, frequencies are stretched as in Llama 3: long wavelengths are divided by ``factor``, short ones
    kept, those between interpolated (arXiv:2407.21783; transformers' ``rope_type: llama3``).

    Returns:
        ``[E / 2]`` float32, radians per token.
    """
    pairs = torch.arange(0, head_width, 2, dtype=torch.int64, device=device).float() / head_width
    frequencies = 1.0 / theta**pairs
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((scaling.original_context / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


def rotary_tables(positions: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every position's angles.

    Args:
        positions: ``[..., T]`` int64.
        frequencies: ``[E / 2]`` float32, radians per token.

    Returns:
        Two tensors ``[..., T, E / 2]`` float32.
    """
    angles = positions[..., None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (component i, component i + E / 2) by its angle: the half-split order of Hugging Face.

    Args:
        x: ``[..., T, E]`` queries or keys.
        cos: ``[..., T, E / 2]``, as ``sin``; broadcast over the heads of x.
        sin: see ``cos``.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def sinusoidal_embedding(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Sine on even and cosine on odd components (Attention Is All You Need, section 3.5).

    Args:
        positions: ``[..., T]`` int64.
        width: D, even.

    Returns:
        ``[..., T, D]`` float32.
    """
    cos, sin = rotary_tables(positions, rotary_frequencies(width, theta=10000.0, device=positions.device))
    return torch.stack((sin, cos), dim=-1).flatten(-2)

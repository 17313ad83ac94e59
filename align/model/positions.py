"""Position encodings: RoPE and sinusoids.

Legend: T tokens, D width, E components of a head, N components of it that are rotated.

RoPE tables are computed in float32 from integer positions in every forward pass and are not buffers, so nothing is cast
to bfloat16, missing on the meta device, or too short.
"""

import torch

from align.model.rope_scaling import RopeScaling

Tables = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine of the RoPE angles, ``[..., T, N / 2]`` float32 each"""


def rotary_frequencies(
    width: int, *, theta: float, scaling: RopeScaling | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """RoPE frequencies, ``theta ** (-2 i / N)`` (RoFormer, arXiv:2104.09864), scaled if the context was extended.

    Args:
        width: N.
        theta: base.
        scaling: for a context longer than the trained one.
        device: of the result.

    Returns:
        ``[N / 2]`` float32, radians per token.
    """
    pairs = torch.arange(0, width, 2, dtype=torch.int64, device=device).float() / width
    powers = theta**pairs
    return 1.0 / powers if scaling is None else scaling.frequencies(powers, theta)


def rotary_tables(positions: torch.Tensor, frequencies: torch.Tensor) -> Tables:
    """Cosine and sine of the RoPE angles.

    Args:
        positions: ``[..., T]`` int64.
        frequencies: ``[N / 2]`` float32, radians per token.

    Returns:
        Two tensors ``[..., T, N / 2]`` float32.
    """
    angles = positions[..., None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (component i, component i + N / 2) by its angle; Hugging Face's half-split order.

    Args:
        x: ``[..., T, E]`` queries or keys; components from N on are not rotated.
        cos: ``[..., T, N / 2]``; broadcast over the heads of x.
        sin: as ``cos``.
    """
    width = 2 * cos.shape[-1]
    first, second = x[..., :width].chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    return rotated if width == x.shape[-1] else torch.cat((rotated, x[..., width:]), dim=-1)


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

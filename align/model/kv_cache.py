"""Keys and values of the tokens already read.

Legend: L layers, B rows, K key/value heads, S slots, T tokens, E width of one head.
"""

import torch

from align.model.config import GPTConfig


class KVCache:
    """A static cache: memory for every slot from the start, written in place.

    A token's slot is its position, so rows of different length live side by side: what padding wrote beyond a row's
    end is never looked at (a query at position p sees slots 0..p) and is overwritten when the row gets there.

    Attributes:
        keys: ``[L, B, K, S, E]``.
        values: ``[L, B, K, S, E]``.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch: int,
        length: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        kv_heads: int | None = None,
    ) -> None:
        """Room for ``batch`` rows of ``length`` tokens; of ``kv_heads`` heads, where the network is split by heads.

        Raises:
            ValueError: ``length`` is beyond the network's context.
        """
        if not 1 <= length <= config.context:
            raise ValueError(f"length is {length}; it must be between 1 and the network's context ({config.context})")
        shape = (config.layers, batch, kv_heads or config.resolved_kv_heads, length, config.resolved_head_width)
        # Zeros, not empty: a masked slot still meets a weight of 0, and 0 times a NaN left in memory is NaN.
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))

    @property
    def length(self) -> int:
        """Slots of a row, tokens."""
        return self.keys.shape[3]

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, *, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens of one layer and return all its slots.

        Args:
            layer: the block's number.
            keys: ``[B, K, T, E]``.
            values: ``[B, K, T, E]``.
            positions: ``[T]`` or ``[B, T]`` int64, the slots to write.

        Returns:
            Keys and values ``[B, K, S, E]``, views of the cache.
        """
        slots = positions.expand(keys.shape[0], -1)[:, None, :, None].expand_as(keys)
        self.keys[layer].scatter_(2, slots, keys.to(self.keys.dtype))
        self.values[layer].scatter_(2, slots, values.to(self.values.dtype))
        return self.keys[layer], self.values[layer]

    def keep(self, rows: torch.Tensor, slots: int) -> None:
        """Drop every other row.

        Args:
            rows: ``[B']`` int64, ascending.
            slots: how many slots of them hold something worth keeping.
        """
        for tensor in (self.keys, self.values):
            for layer in range(len(tensor)):  # one at a time: the copy in between stays small
                tensor[layer, : len(rows), :, :slots] = tensor[layer, :, :, :slots][rows]
        self.keys, self.values = (tensor[:, : len(rows)] for tensor in (self.keys, self.values))

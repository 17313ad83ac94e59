"""Precisions of a run: bytes of weights, and the dtype of matrix products."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Precision:
    """How numbers are stored and multiplied."""

    name: str
    """trainer.precision, or qlora"""
    products: str
    """Dtype of matrix products: float32, float64 or bfloat16"""
    weight_bytes: int
    """Bytes of a trained weight, of its gradient, and of each of its running means"""
    four_bit: bool = False
    """Whether frozen matrices of blocks have 4 bits (QLoRA)"""

    @property
    def narrow(self) -> bool:
        """Whether matrix products are in bfloat16."""
        return self.products == "bfloat16"

    @property
    def product_bytes(self) -> int:
        """Bytes of an element of a matrix product."""
        return 2 if self.narrow else self.weight_bytes


PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        one.name: one
        for one in (
            Precision("32-true", "float32", 4),
            Precision("bf16-mixed", "bfloat16", 4),
            Precision("bf16-true", "bfloat16", 2),
            Precision("64-true", "float64", 8),
            Precision("qlora", "bfloat16", 4, four_bit=True),
        )
    }
)

COMPARED = ("32-true", "bf16-mixed", "bf16-true")
"""Precisions that a plan compares"""

FOUR_BIT_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight of NF4 with 8-bit block scales (Dettmers et al. 2023, arXiv:2305.14314, section 3): half a byte, a
byte per block of 64, and a float32 per 256 blocks"""


def precision_of(name: str, *, four_bit: bool = False) -> Precision:
    """A precision by the Trainer's name.

    Args:
        name: such as ``bf16-mixed``; ``FourBit``'s begins with that of its products.
        four_bit: QLoRA.

    Raises:
        ValueError: align does not train in it.
    """
    if four_bit:
        return PRECISIONS["qlora"]
    known = _find(name)
    if known is None:
        raise ValueError(f"precision is {name!r}; it must be one of {', '.join(PRECISIONS)}")
    return known


def running_precision(name: str, *, four_bit: bool = False) -> Precision:
    """The precision of a Trainer in use; one that is not known, such as a plugin's, counts as 32-true.

    Args:
        name: the Trainer's.
        four_bit: QLoRA.
    """
    return PRECISIONS["qlora"] if four_bit else _find(name) or PRECISIONS["32-true"]


def _find(name: str) -> Precision | None:
    return next((one for key, one in PRECISIONS.items() if name.startswith(key)), None)

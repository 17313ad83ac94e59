"""A device that is not the CPU, on a machine that has no other: CPU tensors behind a wrapper.

A tensor on ``away:0`` computes what a CPU tensor does, and what a GPU refuses is refused: an operation on tensors of
two devices (numbers of the CPU, without axes, may join in), a tensor from there as an index into one of the CPU, numpy
of it. So code that leaves a tensor behind on the CPU fails here as it would on a GPU. float64 is refused as Apple's MPS
refuses it. What it can't tell: speed, the kernels of a GPU, random numbers drawn there, memory.

It stands on torch's dispatch key for devices made in Python, which a process has to know before its first backward
pass: ``align_with_another_device`` runs command lines in a process of their own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

AWAY = "away:0"
_aten = torch.ops.aten
_FACTORIES = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "randperm", "full", "rand", "randn")
_COPIES = (_aten.copy_.default, _aten._to_copy.default, _aten._copy_from.default)
_INDEXED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)


def align_with_another_device(*commands: Sequence[str], timeout: float = 250) -> None:
    """Run command lines of align, one after another, in one process that knows the device.

    Raises:
        AssertionError: one of them failed; with the end of what was printed.
    """
    words = [sys.executable, "-c", "import another_device; another_device.run()", json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment())
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def environment(*files: str) -> dict[str, str]:
    """Of a process that imports this module, and those of ``files``."""
    places = [Path(file).parent for file in (*files, __file__)] + [Path(__file__).parents[1]]
    paths = [*map(str, places), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run() -> None:
    """What the process does: the command lines that its argument lists, until one fails."""
    from align.cli import main

    library = register()
    for command in json.loads(sys.argv[1]):
        if status := main(command):
            sys.exit(status)
    del library


class Away(torch.Tensor):
    """A tensor there; ``inner`` is the one that computes."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Away":
        """Wrap a CPU tensor.

        Raises:
            TypeError: it is float64 or complex128, which MPS does not have.
        """
        if inner.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"Cannot convert a MPS Tensor to {inner.dtype} dtype: the MPS framework doesn't support it")
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device(AWAY),
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute with CPU tensors."""
        return _compute(op, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        """Where it is, and what."""
        return f"away({self.detach().inner!r})"

    def tolist(self) -> Any:
        """As numbers."""
        return self.detach().inner.tolist()

    def data_ptr(self) -> int:
        """Where its numbers lie."""
        return self.detach().inner.data_ptr()

    def numpy(self, *, force: bool = False) -> Any:
        """As a GPU's says."""
        raise TypeError(f"can't convert {AWAY} device type tensor to numpy. Use Tensor.cpu()")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """In a file it is one of the CPU."""
        return self.detach().inner.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """One of its own."""
        if id(self) not in memo:
            copied: Any = Away(self.detach().inner.clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = (
                torch.nn.Parameter(copied, self.requires_grad)
                if is_parameter
                else copied.requires_grad_(self.requires_grad)
            )
        return memo[id(self)]


# A weight that two networks share is moved once.
_moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


def _compute(op: Any, args: Any, kwargs: Any) -> Any:
    """Do ``op`` with CPU tensors; new tensors are where a GPU would make them."""
    if op is _aten._fused_sdp_choice.default:
        return 0  # a product, a softmax and a product
    if op is _aten._has_compatible_shallow_copy_type.default:
        return False
    if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"):
        return op.decompose(*args, **kwargs)  # in inference mode nobody did before
    flat, layout = tree_flatten((args, kwargs))
    _refuse_mixed(op, args, flat)
    if op is _aten._copy_from.default:
        _inner(args[1]).copy_(_inner(args[0]))
        return args[1]
    shared = op is _aten._to_copy.default and isinstance(args[0], torch.nn.Parameter) and not kwargs.get("dtype")
    if shared and id(args[0]) in _moved:
        return _moved[id(args[0])][1]
    target = torch.device(kwargs.get("device") or (args[0].device if op in _COPIES else AWAY))
    owners = {id(x.inner): x for x in flat if isinstance(x, Away)}
    there_args, there_kwargs = tree_unflatten([_inner(x) for x in flat], layout)
    with torch.no_grad():
        result = op(*there_args, **there_kwargs)
    if op is _aten.copy_.default:
        return args[0]

    def back(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or target.type == "cpu":
            return value
        return owners[id(value)] if id(value) in owners else Away(value)

    result = tree_map(back, result)
    if shared and isinstance(result, Away):
        _moved[id(args[0])] = args[0], result
    return result


def _refuse_mixed(op: Any, args: Any, flat: list[Any]) -> None:
    left_behind = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, Away) and x.dim()]
    left_behind = left_behind if op not in _INDEXED else [args[0]] * (not isinstance(args[0], Away))
    if left_behind and op not in _COPIES:
        found = [(str(x.device), tuple(x.shape)) for x in flat if isinstance(x, torch.Tensor)]
        raise RuntimeError(f"Expected all tensors to be on the same device: {op} of {found}")


def _inner(value: Any) -> Any:
    if isinstance(value, Away):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) else value


class _Module(backend_registration._DummyBackendModule):
    """What torch asks a device's module for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Any, device: Any = None) -> None:
        pass


class _Accelerator(Accelerator):
    """One device, nothing to set up."""

    def setup_device(self, device: torch.device) -> None:
        pass

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(AWAY)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "away"


class AwayStrategy(SingleDeviceStrategy):
    """Trains there; with the Trainer's ``inference_mode=False``, which tensors with wrappers don't know."""

    def __init__(self) -> None:
        """Nothing to choose."""
        super().__init__(device=torch.device(AWAY), accelerator=_Accelerator())


def register() -> torch.library.Library:
    """Make the device known to this process, for as long as the result lives."""
    backend_registration._setup_privateuseone_for_python_backend("away", backend_module=_Module())
    library = torch.library.Library("aten", "IMPL")

    def make(op: Any, *args: Any, **settings: Any) -> Away:
        for name in ("layout", "device", "pin_memory", "memory_format"):
            settings.pop(name, None)
        return Away(op(*args, **settings))

    def compute(op: Any, *args: Any, **kwargs: Any) -> Any:
        return _compute(op, args, kwargs)

    for name in ("empty.memory_format", "empty_strided", *_FACTORIES):
        library.impl(name, partial(make, _overload(name)), "PrivateUse1")
    for name in ("_copy_from", "copy_", "fill_.Scalar", "zero_", "_local_scalar_dense"):
        library.impl(name, partial(compute, _overload(name)), "PrivateUse1")
    return library


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(_aten, packet), overload or "default")

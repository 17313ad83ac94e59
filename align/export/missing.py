"""Libraries that only some exports, and serving, need."""

import logging
from importlib import import_module
from typing import Any


def need(module: str, purpose: str, *, extra: str = "export") -> Any:
    """Import a library of an extra.

    Args:
        module: its name, as in ``gguf``.
        purpose: what asks for it, for the error.
        extra: the extra that holds it.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: it is not installed; one line names the extra that holds it.
    """
    # torchao warns of GPU kernels, and torch of torchao, on every import.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        package = module.partition(".")[0]
        raise ModuleNotFoundError(
            f'{purpose} needs {package}, which is not installed: pip install "lightning-align[{extra}]"'
        ) from None

"""Import libraries of the pip extra ``export``, which only some exports need."""

import logging
from importlib import import_module
from typing import Any


def need(module: str, purpose: str) -> Any:
    """Import a library of the extra ``export``.

    Args:
        module: its name, such as ``gguf``.
        purpose: what needs it, for the error message.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: it is not installed; the message names the extra.
    """
    # Every import of torchao warns about missing GPU kernels, and makes torch warn.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        package = module.partition(".")[0]
        raise ModuleNotFoundError(
            f'{purpose} needs {package}, which is not installed: pip install "lightning-align[export]"'
        ) from None

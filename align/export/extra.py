"""Import libraries that only some exports, or serving, need; pip extras install them."""

import logging
from importlib import import_module
from typing import Any


def need(module: str, purpose: str, *, extra: str = "export") -> Any:
    """Import a library of an extra.

    Args:
        module: its name, such as ``gguf``.
        purpose: what needs it, for the error message.
        extra: the pip extra that installs it.

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
            f'{purpose} needs {package}, which is not installed: pip install "lightning-align[{extra}]"'
        ) from None

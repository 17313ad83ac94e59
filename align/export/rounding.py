"""The source of an export with its weights rounded as the file stores them.

What such a network computes differs from the export's by the program's own arithmetic alone, in any precision, so a
tensor that is wrong shows even where rounding alone moves the log-probabilities far.
"""

import copy
from collections.abc import Iterator

import torch

from align.export.export_settings import CALIBRATED, ExportSettings
from align.export.gguf_file import rounded_by_gguf
from align.export.int8 import rounded_by_int8
from align.export.safetensors_dir import written_dtype
from align.export.source import Source
from align.model.gpt import GPT, ScalarGPT


def rounded(source: Source, settings: ExportSettings) -> GPT | ScalarGPT | None:
    """The source with the export's weights.

    Returns:
        A copy, or the source's network itself if the export stores its weights exactly; None for gptq and awq, where
        another program chooses the weights.
    """
    if settings.quantize in CALIBRATED:
        return None
    network: GPT | ScalarGPT | None = None
    for name, values in _stored(source, settings):
        if network is None and not torch.equal(values, source.network.state_dict()[name]):
            network = copy.deepcopy(source.network)
        if network is not None:
            network.state_dict()[name].copy_(values)
    return source.network if network is None else network


def _stored(source: Source, settings: ExportSettings) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor by its name in the network, float32, as read from the file."""
    if settings.format == "gguf":
        yield from rounded_by_gguf(source, settings)
    elif settings.quantize == "int8":
        yield from rounded_by_int8(source, settings)
    else:
        dtype = written_dtype(source, settings)
        for name, tensor in source.network.state_dict().items():
            yield name, tensor.to(dtype).float()

"""Log-probs of a response under the trainer's network, to check an engine against."""

from collections.abc import Sequence

import torch

from align.generation.generate import evaluating
from align.generation.sampled_ids import SampledIds
from align.model.gpt import GPT


@torch.no_grad()
def response_logprobs(network: GPT, prompt: Sequence[int], ids: Sequence[int], sampled: SampledIds) -> torch.Tensor:
    """Log-probs of the N tokens of a response at temperature 1, in the precision of the weights, without autocast.

    Args:
        network: any mode; it is restored.
        prompt: ids before the response.
        ids: of the response.
        sampled: ids that can be sampled; the softmax is over these.

    Returns:
        ``[N]`` float32 on the CPU, nats.
    """
    device = network.output_weight.device
    with evaluating(network), torch.autocast(device.type, enabled=False):
        hidden = network.hidden(torch.tensor([[*prompt, *ids[:-1]]], device=device))[0, len(prompt) - 1 :]
        logits = sampled.columns(network.logits(hidden)).float()
    chosen = sampled.indices(torch.tensor(ids, device=device), network.config.vocab_size)
    return logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0].cpu()

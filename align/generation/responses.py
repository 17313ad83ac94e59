"""The sampling service: prompts in, responses out, for everything in align that samples.

Rollouts, policy evaluation, `generate`, `chat`, `preferences`, `compare`, `export --verify` and the samples written
during training all call ``sample_responses`` and seed each response with ``align.generation.sampling.response_seed``.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from align.generation.generate import Samples, generate
from align.generation.sampled_ids import SampledIds
from align.generation.sampling_config import SamplingConfig
from align.model.gpt import GPT
from align.tokenizer import Tokenizer


class Responses(NamedTuple):
    """Responses to B prompts, in the order of the prompts.

    Attributes:
        ids: B lists of token ids, a stop token included.
        texts: B decoded responses, without special tokens.
        finished: B flags: True where a stop token ended the response, False where the length limit did.
        samples: the same as padded tensors, with the log-probability of every token.
    """

    ids: list[list[int]]
    texts: list[str]
    finished: list[bool]
    samples: Samples

    def records(self) -> list[dict[str, Any]]:
        """One JSON-ready record per response: ``text``, ``tokens`` (a count, stop token included), ``finished``."""
        return [
            {"text": text, "tokens": len(ids), "finished": finished}
            for ids, text, finished in zip(self.ids, self.texts, self.finished, strict=True)
        ]


def sample_responses(
    network: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    seeds: Sequence[int],
    on_token: Callable[[int, int], bool | None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> Responses:
    """Sample one response to each prompt, all in one batch.

    Args:
        network: sampled in evaluation mode, and left in the mode it was in.
        tokenizer: the network's own; it names the tokens that end a response, and rows of the output matrix that
            are not its ids are never sampled.
        prompts: B lists of token ids, as ``encode_prompt`` gives them.
        sampling: temperature, filters, and maximum length.
        seeds: B seeds, from ``response_seed``: a response depends neither on its batch nor on earlier ones.
        on_token: called with (row, token) as soon as a token is sampled; True ends the response, as a stop token does.
        on_step: called between two tokens; an exception that it raises ends the sampling.

    Raises:
        ValueError: a prompt is empty or leaves no room in the context, or the logits are not finite.
    """
    samples = generate(
        network,
        prompts,
        sampling,
        stop_ids=tokenizer.stop_ids,
        seeds=seeds,
        pad_id=tokenizer.pad_id or 0,
        on_token=on_token,
        on_step=on_step,
        sampled=SampledIds.of(tokenizer),
    )
    lengths = samples.mask.sum(1).tolist()
    ids = [row[:length] for row, length in zip(samples.ids.tolist(), lengths, strict=True)]
    texts = [tokenizer.decode(row) for row in ids]
    return Responses(ids, texts, samples.finished.tolist(), samples)

"""How much a run computes: from the sizes of its data and the number of its steps."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from align.plan.job import Job, Volume

ReadsReference = Literal["never", "once", "in_every_step"]
"""When a reference's log-probs are computed"""


class DataSizes(NamedTuple):
    """Sizes of the training data, in positions that the network computes.

    Attributes:
        records: rows, pairs or prompts of an epoch; None: unknown.
        mean: of a record in a batch, padding included.
        longest: of a record in the largest batch.
        row: mean tokens of a row, which attention depends on.
        prompt: mean tokens of a prompt.
        longest_prompt: tokens.
    """

    records: int | None
    mean: float
    longest: int
    row: float
    prompt: float = 0.0
    longest_prompt: int = 0


def training_volume(
    job: Job,
    sizes: DataSizes,
    steps: int | None,
    *,
    reads_reference: ReadsReference = "never",
    reads_mismatched: bool = False,
    assumed: Sequence[str] = (),
) -> Volume:
    """Of a stage that learns from given data.

    Args:
        job: with rows, micro-batches and strategy.
        sizes: of the data.
        steps: optimizer steps; None: unknown.
        reads_reference: when the reference's log-probs are computed.
        reads_mismatched: KTO's policy reads as many mismatched responses without gradient.
        assumed: about the sizes.
    """
    if steps is None:
        return Volume(None, None, sizes.row, assumed=tuple(assumed))
    trained = steps * job.global_rows * sizes.mean
    once = trained if sizes.records is None else sizes.records * sizes.mean
    read = {"never": {}, "once": {"reference": once}, "in_every_step": {"reference": trained}}[reads_reference]
    if reads_mismatched:
        read = read | {"policy": trained}
    return Volume(steps, trained, sizes.row, read=read, assumed=tuple(assumed))


def rollout_volume(job: Job, steps: int | None, *, assumed: Sequence[str] = ()) -> Volume:
    """Of a stage that learns from its own responses.

    Args:
        job: with a rollout.
        steps: optimizer steps; None: unknown.
        assumed: about prompts and responses.
    """
    rollout = job.rollout
    assert rollout is not None
    row = rollout.prompt_tokens + rollout.response_tokens
    if steps is None:
        return Volume(None, None, row, assumed=tuple(assumed))
    iterations = -(-steps // rollout.steps)
    rows = iterations * rollout.episodes
    # A group's prompt is computed once.
    computed = rollout.prompt_tokens / rollout.group_size + rollout.response_tokens
    return Volume(
        steps,
        rows * rollout.passes * computed * steps / (iterations * rollout.steps) if iterations else 0.0,
        row,
        sampled=rows * rollout.response_tokens,
        read={role: rows * computed for role in rollout.readers},
        iterations=iterations,
        assumed=tuple(assumed),
    )

"""Dynamic sampling of DAPO (Yu et al. 2025, arXiv:2503.14476, section 3.2): which groups of a rollout to train on.

A group of equal scores has advantages of 0 and teaches nothing. So an iteration may draw more prompts than it trains on
and keep the groups whose scores differ.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from align.algorithms.rollout import Responses
from align.algorithms.scoring import Scores


class Draw(NamedTuple):
    """Responses to some prompts, scored; those to a prompt are neighbours."""

    responses: Responses
    scores: Scores


def differing(scores: torch.Tensor, group_size: int) -> torch.Tensor:
    """Which groups have scores that differ.

    Args:
        scores: ``[B]``, those of a group are neighbours.
        group_size: responses to each prompt.

    Returns:
        ``[B / group_size]`` bool.
    """
    groups = scores.view(-1, group_size)
    return groups.amax(1) != groups.amin(1)


def first_groups(draw: Draw, count: int, group_size: int) -> Draw:
    """The first groups whose scores differ; where there are too few, the first of the others after them.

    Args:
        draw: at least ``count`` groups.
        count: groups to keep.
        group_size: responses to each prompt.

    Returns:
        Draw: padded no wider than its longest response needs.
    """
    differ = differing(draw.scores.scores, group_size)
    chosen = torch.cat([differ.nonzero()[:, 0], (~differ).nonzero()[:, 0]])[:count].sort().values
    offsets = torch.arange(group_size, device=chosen.device)
    rows = (chosen[:, None] * group_size + offsets).ravel()
    rewards, scores, gold, parts = draw.scores
    kept = Scores(
        rewards[rows],
        scores[rows],
        None if gold is None else gold[rows],
        {name: values[rows] for name, values in parts.items()},
    )
    return Draw(_rows_of(draw.responses, rows), kept)


def joined(draws: Sequence[Draw]) -> Draw:
    """Several draws as one, in their order."""
    if len(draws) == 1:
        return draws[0]
    responses, scores = [draw.responses for draw in draws], [draw.scores for draw in draws]
    return Draw(
        Responses(
            ids=_stacked([part.ids for part in responses]),
            prompt_lengths=[length for part in responses for length in part.prompt_lengths],
            lengths=[length for part in responses for length in part.lengths],
            mask=_stacked([part.mask for part in responses]),
            logprobs=_stacked([part.logprobs for part in responses]),
            finished=torch.cat([part.finished for part in responses]),
            prompts=[prompt for part in responses for prompt in part.prompts],
            columns=[columns for part in responses for columns in part.columns],
            texts=[text for part in responses for text in part.texts],
            rewards=_stacked(given) if (given := [r.rewards for r in responses if r.rewards is not None]) else None,
        ),
        Scores(
            rewards=torch.cat([part.rewards for part in scores]),
            scores=torch.cat([part.scores for part in scores]),
            gold=torch.cat(gold) if (gold := [part.gold for part in scores if part.gold is not None]) else None,
            parts={name: torch.cat([part.parts[name] for part in scores]) for name in scores[0].parts},
        ),
    )


def _rows_of(responses: Responses, rows: torch.Tensor) -> Responses:
    """Some of the responses."""
    chosen = rows.tolist()
    lengths = [responses.lengths[row] for row in chosen]
    mask = responses.mask[rows]
    longest = max(responses.lengths[row] - responses.prompt_lengths[row] for row in chosen)
    return Responses(
        ids=responses.ids[rows, : max(lengths)],
        prompt_lengths=[responses.prompt_lengths[row] for row in chosen],
        lengths=lengths,
        mask=mask[:, :longest],
        logprobs=responses.logprobs[rows, :longest],
        finished=responses.finished[rows],
        prompts=[responses.prompts[row] for row in chosen],
        columns=[responses.columns[row] for row in chosen],
        texts=[responses.texts[row] for row in chosen],
        rewards=None if responses.rewards is None else responses.rewards[rows, :longest],
    )


def _stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of several widths, padded with 0 on the right."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])

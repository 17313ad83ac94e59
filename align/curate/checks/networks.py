"""Checks of tokenizer against network, and of reference, reward and value model against the policy."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from align.curate.check import Check, Example, Finding
from align.curate.context import Context


@dataclass(frozen=True)
class VocabularyTooSmall(Check):
    """Tokenizer ids for which the network has no row; and rows that no id uses."""

    severity = "error"

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        ids = context.tokenizer.vocab_size
        for network in context.networks:
            if network.role in ("policy", "reference") and network.vocab_size < ids:
                yield Finding(
                    f"the tokenizer has {ids:,} ids, but the {network.role} {network.source} has only "
                    f"{network.vocab_size:,} rows".replace("  ", " "),
                    "use the model's own tokenizer, or add the tokens: model.init_args.add_tokens of SFT",
                )
        policy = context.policy
        if policy is not None and policy.vocab_size > 1.5 * ids:
            yield Finding(
                f"the network has {policy.vocab_size:,} rows, but the tokenizer uses only {ids:,} ids",
                "check that the tokenizer is the model's own",
                severity="warning",
            )


@dataclass(frozen=True)
class OtherTokenizer(Check):
    """A tokenizer whose ids mean other tokens than those the network was trained with."""

    severity = "error"

    def find(self, context: Context) -> Iterable[Finding]:
        """Compares the tokens of the ids that the first records use."""
        rows = [row.ids for sample in context.train.samples[:200] for row in sample.rows]
        if not rows:
            return
        used = np.unique(np.concatenate(rows)).tolist()
        for network in context.networks:
            theirs, ours = network.tokenizer, context.tokenizer
            if theirs is None or theirs.fingerprint == ours.fingerprint or network.role not in ("policy", "reference"):
                continue
            differ = [i for i in used if not theirs.is_token(i) or theirs.token_text(i) != ours.token_text(i)]
            if differ:
                shown = [
                    Example(f"id {i}", f"{ours.token_text(i)!r} here, {_text(theirs, i)!r} in {network.source}")
                    for i in differ[:3]
                ]
                yield Finding(
                    f"{len(differ):,} of {len(used):,} ids stand for other tokens in {network.source}, the "
                    f"{network.role}",
                    "set data.init_args.tokenizer to the model's own directory",
                    count=len(differ),
                    total=len(used),
                    examples=shown,
                )


def _text(tokenizer: object, number: int) -> str:
    from align.tokenizer import Tokenizer

    assert isinstance(tokenizer, Tokenizer)
    return tokenizer.token_text(number) if tokenizer.is_token(number) else "nothing"


@dataclass(frozen=True)
class ContextBeyondNetwork(Check):
    """Rows longer than a network can read."""

    severity = "error"

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        for network in context.networks:
            if network.context < context.run.context and network.role in ("policy", "reference", "value"):
                yield Finding(
                    f"data.init_args.context is {context.run.context:,}, but the {network.role}'s is "
                    f"{network.context:,}",
                    f"lower data.init_args.context to {network.context}, or extend the model with rope_scaling",
                )


@dataclass(frozen=True)
class ReferenceDiffers(Check):
    """A reference that is not the initial policy."""

    severity = "error"

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        reference = next((one for one in context.networks if one.role == "reference"), None)
        policy = context.policy
        if reference is None or policy is None or reference.source == policy.source:
            return
        if (reference.vocab_size, reference.parameters) != (policy.vocab_size, policy.parameters):
            yield Finding(
                f"the reference {reference.source} has {reference.parameters:,} parameters and "
                f"{reference.vocab_size:,} rows, the policy {policy.source} has {policy.parameters:,} and "
                f"{policy.vocab_size:,}",
                "remove model.init_args.reference, so that the initial policy is the reference",
            )
        elif not context.run.other_reference:
            yield Finding(
                f"the reference {reference.source} is not the initial policy {policy.source}",
                "remove model.init_args.reference, or set other_reference if the difference is intended",
                severity="warning" if context.kind == "prompts" else None,
            )


@dataclass(frozen=True)
class RewardFits(Check):
    """A reward model that can't score the policy's responses: no score head, other ids, or a shorter context."""

    severity = "error"

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        for network in context.networks:
            if network.role not in ("reward", "gold"):
                continue
            if not network.scores:
                yield Finding(
                    f"the {network.role} {network.source} is a language model, not a reward model",
                    "train a reward model from it, and give its directory",
                )
            theirs = network.tokenizer
            if theirs is not None and theirs.fingerprint != context.tokenizer.fingerprint:
                yield Finding(
                    f"the {network.role} {network.source} has another tokenizer than the policy",
                    "train the reward model from the same SFT model as the policy",
                )
            longest = int(context.train.lengths.max(initial=0)) + (context.run.rollout_tokens or 0)
            if context.run.rollout_tokens is not None and network.context < longest:
                yield Finding(
                    f"the {network.role} {network.source} reads {network.context:,} tokens, but prompt and response "
                    f"may have {longest:,}",
                    "lower rollout.max_new_tokens or data.init_args.max_prompt_tokens",
                )

"""Checks of token rows: lengths, truncation, masks, special tokens, and what the chat template makes of a chat."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from align.curate.check import Check, Example, Finding, affected
from align.curate.context import Context, Sample, Split
from align.tokenizer import Tokenizer

QUANTILES = (0.0, 0.05, 0.5, 0.95, 0.99, 1.0)
_BINS = 12


@dataclass(frozen=True)
class TokenLengths(Check):
    """Tokens of a record before truncation: quantiles and a histogram."""

    severity = "note"

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        for split in context.splits.values():
            if not split.samples:
                continue
            values = np.quantile(split.lengths, QUANTILES, method="nearest").astype(int).tolist()
            words = ", ".join(f"{_name(q)} {value:,}" for q, value in zip(QUANTILES, values, strict=True))
            text = f"tokens per {_noun(context)}: {words}; context {context.run.context:,}"
            if context.kind in ("chats", "pairs"):
                median = np.median(split.response_lengths, axis=0).astype(int).tolist()
                names = ("chosen", "rejected") if len(median) == 2 else ("targets",)
                text += "; median " + ", ".join(f"{name} {n:,}" for name, n in zip(names, median, strict=False))
            yield Finding(text, split=split.name, count=len(split.samples), total=len(split.samples))


def _name(quantile: float) -> str:
    return {0.0: "least", 0.5: "median", 1.0: "most"}.get(quantile, f"{quantile:.0%}")


def _noun(context: Context) -> str:
    return {"texts": "document", "chats": "chat", "pairs": "pair (longer row)", "prompts": "prompt"}.get(
        context.kind, "record"
    )


def histogram(split: Split, bins: int = _BINS) -> list[tuple[int, int, int]]:
    """Records by length: first and last token count of each bin, and the records in it.

    Args:
        split: with at least one record.
        bins: at most this many.
    """
    lengths = split.lengths
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // bins))
    counts = np.bincount((lengths - low) // width)
    return [(low + i * width, low + (i + 1) * width - 1, int(count)) for i, count in enumerate(counts.tolist())]


@dataclass(frozen=True)
class Truncation(Check):
    """Records longer than the context, by what they lose."""

    share: float = 0.05
    """Share of records whose prompt may be truncated"""
    ends: float = 0.01
    """Share of records whose response may lose its end"""

    def find(self, context: Context) -> Iterable[Finding]:
        """Prompts and responses apart; documents are split and lose nothing."""
        for split in context.splits.values():
            fix = _raise_context(split, context)
            prompts = [sample for sample in split.samples if sample.truncated_prompt]
            tokens = sum(sample.truncated_prompt for sample in prompts)
            what = f"records lose the start of their prompt, {tokens:,} tokens in all"
            yield from affected(split, prompts, what, fix, example=_lengths, note=self.share)
            ends = [sample for sample in split.samples if sample.truncated_response]
            tokens = sum(sample.truncated_response for sample in ends)
            what = (
                f"records lose the end of a response, {tokens:,} tokens in all, and with it the end of turn: they "
                "teach the model not to stop"
            )
            yield from affected(split, ends, what, fix, example=_lengths, note=self.ends)


def _lengths(sample: Sample) -> Example:
    return Example.of(
        sample,
        f"{sample.length:,} tokens; dropped {sample.truncated_prompt:,} of the prompt, {sample.truncated_response:,} "
        "of the response",
    )


def _raise_context(split: Split, context: Context) -> str:
    longest = int(split.lengths.max(initial=1))
    return f"raise data.init_args.context (now {context.run.context}; the longest record needs {longest - 1})"


@dataclass(frozen=True)
class ResponsesWithoutEnd(Check):
    """Responses after which the row has no stop token, though nothing was truncated: the model never learns to stop."""

    severity = "error"

    def find(self, context: Context) -> Iterable[Finding]:
        """Every response of a chat counts."""
        if not context.counted:
            return
        stops = np.array(context.tokenizer.stop_ids, np.int64)
        for split in context.splits.values():
            without = [sample for sample in split.samples if not sample.lost_end and not _all_end(sample, stops)]
            yield from affected(
                split,
                without,
                "records have a response without a stop token",
                "the chat template must end the assistant's turn with a special token, and the mask must cover it",
                example=lambda one: Example(one.where, _end(one, context.tokenizer)),
            )


def _all_end(sample: Sample, stops: np.ndarray) -> bool:
    for ids, mask in sample.rows:
        last = mask & ~np.append(mask[1:], False)
        if not np.isin(ids[last], stops).all():
            return False
    return True


def _end(sample: Sample, tokenizer: Tokenizer) -> str:
    ids, mask = sample.rows[0]
    targets = np.flatnonzero(mask)
    if not len(targets):
        return "no target"
    return " | ".join(repr(tokenizer.token_text(int(number))) for number in ids[targets[-1] - 3 : targets[-1] + 1])


@dataclass(frozen=True)
class MaskTrainsNothing(Check):
    """Rows without a target, or in which nearly nothing is one."""

    def find(self, context: Context) -> Iterable[Finding]:
        """An error if it is so of all rows."""
        if context.kind == "prompts":
            return
        for split in context.splits.values():
            empty = [sample for sample in split.samples if not all(row.mask[1:].any() for row in sample.rows)]
            yield from affected(
                split,
                empty,
                "records have no token to learn from",
                "check the roles of the messages and the template's {% generation %} marks",
                severity="error" if len(empty) == len(split.samples) else None,
            )


@dataclass(frozen=True)
class MaskTrainsEverything(Check):
    """Rows in which the prompt is a target too."""

    severity = "error"

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        if not context.counted:
            return
        for split in context.splits.values():
            whole = [
                sample for sample in split.samples if sample.prompt and any(_is_whole(row.mask) for row in sample.rows)
            ]
            yield from affected(
                split,
                whole,
                "records are trained on as a whole, prompt included",
                "check the template's {% generation %} marks: they must enclose the assistant's content only",
            )


def _is_whole(mask: np.ndarray) -> bool:
    return bool(len(mask) > 2 and mask[1:].all())


@dataclass(frozen=True)
class DoubleBOS(Check):
    """Rows that begin with two bos tokens: the template writes one, and so does the text or the tokenizer."""

    severity = "error"

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        bos = context.tokenizer.bos_id
        if bos is None:
            return
        for split in context.splits.values():
            double = [sample for sample in split.samples if (sample.rows[0].ids[:2] == bos).sum() == 2]
            what = f"records begin with {context.tokenizer.token_text(bos)} twice"
            yield from affected(split, double, what, "remove it from the chat template or from the text")


@dataclass(frozen=True)
class PadIsEnd(Check):
    """A padding token that also ends responses: whoever masks padding masks the end, and the model never stops."""

    def find(self, context: Context) -> Iterable[Finding]:
        """A note if the tokenizer has another token to pad with, which align then uses."""
        tokenizer = context.tokenizer
        name = tokenizer.spec.named("pad_token")
        stops = {tokenizer.token_text(number) for number in tokenizer.stop_ids}
        if name is not None and name in stops:
            other = tokenizer.pad_id
            used = f"; align pads with {tokenizer.token_text(other)}" if other is not None else ""
            yield Finding(
                f"pad_token is {name}, which also ends responses{used}",
                "set pad_token in tokenizer_config.json to a token of its own",
                severity="note" if other is not None else None,
            )
        elif tokenizer.pad_id is None:
            yield Finding(
                "the tokenizer has no padding token, so rows are padded with eos; align masks padding by position, "
                "other libraries may mask every eos",
                "set pad_token in tokenizer_config.json to a token of its own",
                severity="note",
            )


@dataclass(frozen=True)
class TemplateTokens(Check):
    """Special tokens that the chat template writes and the tokenizer does not have, so that they fall into pieces."""

    severity = "error"

    def find(self, context: Context) -> Iterable[Finding]:
        """Those that occur in rendered records."""
        if context.kind == "texts" or not context.tokenizer.spec.chat_template:
            return
        template = context.tokenizer.spec.chat_template
        known = {token.content for token in context.tokenizer.spec.added}
        names = {name for name in _LIKE_SPECIAL.findall(template) if name not in known}
        broken: Counter[str] = Counter()
        samples = list(context.train.samples[:20])
        for sample in samples:
            text = context.tokenizer.decode(sample.rows[0].ids, skip_special=False)
            broken.update(name for name in names if name in text)
        for name, count in broken.items():
            pieces = len(context.tokenizer.encode(name))
            yield Finding(
                f"the chat template writes {name}, which the tokenizer splits into {pieces} tokens",
                "use the tokenizer that the template belongs to, or add the token: model.init_args.add_tokens of SFT",
                count=count,
                total=len(samples),
            )


_LIKE_SPECIAL = re.compile(r"<\|[\w.:/-]+\|>|</?(?:start_of_turn|end_of_turn|im_start|im_end|s)>|\[/?INST\]")


@dataclass(frozen=True)
class NotRendered(Check):
    """What records say and the chat template leaves out."""

    def find(self, context: Context) -> Iterable[Finding]:
        """One finding for each thing."""
        for split in context.splits.values():
            for part in dict.fromkeys(part for sample in split.samples for part in sample.unrendered):
                yield from affected(
                    split,
                    [sample for sample in split.samples if part in sample.unrendered],
                    f"records: the chat template does not render {part}",
                    "use a model whose template has it, or write it into the messages",
                )


@dataclass(frozen=True)
class UnlikeSampling(Check):
    """Records in which a response follows other tokens than a prompt ends with when the model samples."""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        for split in context.splits.values():
            unlike = [sample for sample in split.samples if sample.unlike]
            compared = sum(sample.unlike is not None for sample in split.samples)
            if unlike:
                yield from affected(
                    split,
                    unlike,
                    f"records: {unlike[0].unlike}",
                    "change the template so that the prompt ends with a special token or a line break",
                    total=compared,
                )


@dataclass(frozen=True)
class UnknownCharacters(Check):
    """Characters that the tokenizer can't express."""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        tokenizer = context.tokenizer
        name = tokenizer.spec.named("unk_token")
        unknown = None if name is None else tokenizer.spec.id_of(name)
        if unknown in (*tokenizer.stop_ids, tokenizer.bos_id, tokenizer.pad_id):
            unknown = None
        if unknown is None and not tokenizer.missing_bytes:
            return
        for split in context.splits.values():
            lost = [
                sample
                for sample in split.samples
                if tokenizer.dropped_bytes(sample.text) or any((row.ids == unknown).any() for row in sample.rows)
            ]
            yield from affected(
                split,
                lost,
                "records have characters that no token expresses",
                "train the tokenizer on such text, or use one that works on bytes",
            )


@dataclass(frozen=True)
class BytesPerToken(Check):
    """How well the tokenizer fits the data: bytes of text per token."""

    severity = "note"
    least: float = 1.3
    """Fewest bytes per token; below, rows are long and learn slowly"""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        samples = context.train.samples
        size = sum(len(sample.text.encode(errors="replace")) for sample in samples)
        tokens = sum(len(sample.rows[0].ids) + sum(len(row.ids) for row in sample.rows[1:]) for sample in samples)
        if context.kind == "pairs":  # both rows have the prompt
            tokens -= sum(int((~sample.rows[1].mask).sum()) for sample in samples)
        if tokens and not any(sample.truncated_prompt for sample in samples):
            ratio = size / tokens
            low = ratio < self.least and size > 1000
            yield Finding(
                f"{ratio:.2f} bytes of text per token, those of the template included",
                "train the tokenizer on this data, or use a larger vocabulary" if low else "",
                split="train",
            )

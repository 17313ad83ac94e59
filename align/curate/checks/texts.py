"""Checks of characters: encodings gone wrong, markup of other formats, personal data."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from align.curate.check import Check, Example, Finding, affected
from align.curate.context import Context, Sample
from align.curate.personal import PATTERNS

_AROUND = 40


def _found(
    context: Context, search: Callable[[str], re.Match[str] | None], what: str, fix: str, *, share: float = 0.0
) -> Iterable[Finding]:
    """A finding for each split in which ``search`` finds something; a note if in no more than a share of samples."""
    for split in context.splits.values():
        hits = [(sample, hit) for sample in split.samples if (hit := search(sample.text))]
        yield from affected(split, hits, f"records have {what}", fix, example=lambda hit: _cited(*hit), note=share)


def _cited(sample: Sample, hit: re.Match[str]) -> Example:
    text, start, end = sample.text, hit.start(), hit.end()
    visible = "".join(one if one.isprintable() else f"<U+{ord(one):04X}>" for one in hit[0])
    return Example.of(sample, text[max(0, start - _AROUND) : start] + visible + text[end : end + _AROUND])


@dataclass(frozen=True)
class NotUTF8(Check):
    """Lines that are not UTF-8."""

    severity = "error"

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        for split in context.splits.values():
            for file, lines in split.not_utf8.items():
                yield Finding(
                    f"{file}: {lines:,} line(s) are not UTF-8",
                    "convert the file, for example with iconv -f windows-1252 -t utf-8",
                    count=lines,
                    split=split.name,
                    severity=None if context.run.on_bad_record == "stop" else "warning",
                )


_MOJIBAKE = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac[\u0080-\u00bf\u0152\u0153\u02dc\u2018-\u2122]|\u00e2[\u0080-\u009f]"
    "|\u00ef\u00bb\u00bf|\u00f0\u0178"
)


@dataclass(frozen=True)
class Mojibake(Check):
    """UTF-8 that was read as Windows-1252 or Latin-1 and saved again: an e with an accent became two characters."""

    share: float = 0.002
    """Share of records that may have some; fewer are a note"""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        fix = "decode again: text.encode('cp1252').decode('utf-8'), or the package ftfy"
        return _found(context, _MOJIBAKE.search, "text in a wrong encoding", fix, share=self.share)


_REPLACEMENT = re.compile("\ufffd")


@dataclass(frozen=True)
class ReplacementCharacters(Check):
    """U+FFFD, which stands for bytes that were lost when the text was decoded."""

    share: float = 0.002
    """Share of records that may have some; fewer are a note"""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        fix = "take the text from its source again; the characters are lost here"
        return _found(context, _REPLACEMENT.search, "replacement characters (U+FFFD)", fix, share=self.share)


_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u200b\u2028\u2029\u202a-\u202e\u2060\ufeff\ufff9-\ufffb]")


@dataclass(frozen=True)
class ControlCharacters(Check):
    """Characters that nobody sees: control codes, zero-width spaces, byte-order marks, changes of direction."""

    share: float = 0.002
    """Share of records that may have some; fewer are a note"""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        fix = "remove the characters"
        return _found(context, _CONTROL.search, "invisible control characters", fix, share=self.share)


_MARKUP = re.compile(
    r"</?(?:p|br|div|span|a|li|ul|ol|b|i|td|tr|table)(?: [^<>]{0,80})?/?>|&(?:amp|lt|gt|quot|nbsp|#\d+);"
)


@dataclass(frozen=True)
class Markup(Check):
    """HTML tags and entities left in ordinary text."""

    share: float = 0.02
    """Share of records that may have some; they may be about HTML"""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        fix = "convert HTML to text, unless the model is to write HTML"
        return _found(context, _MARKUP.search, "HTML tags or entities", fix, share=self.share)


_FOREIGN = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id|begin_of_text|system|user|assistant|end|eos"
    r"|bos|pad)\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>"
)


@dataclass(frozen=True)
class SpecialTokensInText(Check):
    """Names of special tokens in the text: it was rendered with a chat template before.

    They are encoded as ordinary text, so they end no turn, and the model learns to write them.
    """

    def find(self, context: Context) -> Iterable[Finding]:
        """Those of the tokenizer, and those of well-known templates."""
        ours = [name for name in context.tokenizer.special_tokens if len(name) > 2]
        pattern = re.compile("|".join([_FOREIGN.pattern, *map(re.escape, ours)]))

        def search(text: str) -> re.Match[str] | None:
            return pattern.search(text) if "<" in text or "[" in text else None

        fix = "store the messages, not the rendered chat; the chat template adds these tokens"
        return _found(context, search, "special tokens in their text", fix)


_TURN = re.compile(
    r"(?:^|\n)\s*(?:(?:###\s*)?(?:Human|User|Assistant|Instruction|Response|Input|System|AI|Q|A)\s*:|###\s*(?:Human|User|"
    r"Assistant|Instruction|Response|Input)\b)"
)
_SPEAKER = re.compile(r"(?:^|\n)\s*(?:###\s*)?(?:Human|User|Instruction)\s*:?")


@dataclass(frozen=True)
class TurnsInResponses(Check):
    """Responses that continue with the user's next turn: the model would learn to speak for both."""

    share: float = 0.002
    """Share of records that may have one"""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        if context.kind not in ("chats", "pairs"):
            return
        for split in context.splits.values():
            hits = []
            for sample in split.samples:
                for response in sample.responses:
                    turn = next(
                        (hit for hit in _TURN.finditer(response) if hit.start() and _SPEAKER.match(hit[0])), None
                    )
                    if turn:
                        hits.append((sample, response[max(0, turn.start() - _AROUND) :]))
                        break
            yield from affected(
                split,
                hits,
                "records have a response that continues with a turn of the user",
                "split the turns into messages, or end the response before them",
                example=lambda hit: Example.of(*hit),
                silent=self.share,
            )


@dataclass(frozen=True)
class SpaceAround(Check):
    """Responses that begin or end with spaces, as data for prompts without a template have them."""

    share: float = 0.2
    """Share of records that may have one"""

    def find(self, context: Context) -> Iterable[Finding]:
        """See ``Check``."""
        if context.kind not in ("chats", "pairs") or context.tokenizer.spec.config.get("plain"):
            return
        for split in context.splits.values():
            hits = [one for one in split.samples if any(text != text.strip() for text in one.responses)]
            yield from affected(
                split,
                hits,
                "records have a response with spaces or blank lines around it",
                "strip the responses, unless the template adds no space of its own",
                example=lambda one: Example(one.where, repr(one.responses[0][:60])),
                silent=self.share,
                severity="note",
            )


@dataclass(frozen=True)
class PersonalData(Check):
    """Patterns of personal data and of secrets; domains and numbers that are reserved for examples don't count."""

    patterns: tuple[str, ...] = field(default=tuple(pattern.name for pattern in PATTERNS))
    """Names of the patterns in ``align/curate/personal.py`` to look for"""

    def find(self, context: Context) -> Iterable[Finding]:
        """One finding for each pattern and split."""
        for pattern in PATTERNS:
            if pattern.name not in self.patterns:
                continue
            for split in context.splits.values():
                hits = [(one, hit) for one in split.samples if (hit := next(pattern.matches(one.text), None))]
                yield from affected(
                    split,
                    hits,
                    f"records have {pattern.name}",
                    "replace or remove them unless they are invented: models repeat what they were trained on",
                    example=lambda hit: Example.of(*hit),
                )

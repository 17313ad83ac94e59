"""Find phrases that the project does not use, and say what to write instead.

    python tools/check_prose.py                  # everything; `make lint` runs this
    python tools/check_prose.py align/data docs  # these files and folders

It reads comments and strings of Python files, comments of YAML files, and the text of Markdown files. Code is left out:
fenced blocks, words in backticks, replacement fields of f-strings, and strings without a space. Each finding is a line
``file:line phrase -> use instead``; the exit code is 1 if there are any, 2 if a path does not exist.
"""

import argparse
import bisect
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

CHECKED = (
    "align",
    "benchmarks",
    "data_cards",
    "docs",
    "examples",
    "recipes",
    "tools",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
"""Paths that are checked."""


class Phrase(NamedTuple):
    """A phrase that is not used.

    Attributes:
        pattern: regular expression, matched without regard to case at word borders, across line breaks.
        use: what to write instead.
        example: a text that the pattern must find.
    """

    pattern: str
    use: str
    example: str


PHRASES = (
    # One term per concept
    Phrase(
        r"(?:own|SFT|model's|policy's|sampled|chosen|rejected|held-out|paired) answers?",
        "response",
        "pairs of the model's own answers",
    ),
    Phrase(
        r"answers? (?:to|of|for) (?:a|the|each|every|its|one|all|the same) (?:prompts?|model|policy)",
        "response",
        "four answers to each prompt",
    ),
    Phrase(r"(?:two|several|many|four|longest|missing|half-written) answers?", "response", "the longest answer"),
    Phrase(r"scorers?", "reward, judge or gold reward", "a scorer of responses"),
    Phrase(r"yardsticks?", "first judge, baseline or gold reward", "the yardstick of the others"),
    Phrase(
        r"(?:is|are|was|were|be|been|being) cut(?! off| out| down| in half)",
        "truncated (tokens), sharded (weights) or split",
        "the prompt is cut from its start",
    ),
    Phrase(r"cut short", "truncated", "the file is cut short"),
    Phrase(r"cuts? (?:to|from) (?:its|the|their) (?:context|start|end)", "truncate", "cut from its start"),
    Phrase(r"cut (?:the )?(?:networks?|models?|weights) up", "shard", "cut the networks up"),
    Phrase(r"dealt(?! with)|deals? (?:\w+ ){0,2}out", "shard, or assign in turn", "rows are dealt to ranks"),
    Phrase(
        r"(?:weights|gradients|state|networks?|matrices)(?: \w+){0,3} spread over",
        "sharded over",
        "weights spread over all devices",
    ),
    Phrase(
        r"piece by piece|in pieces|pieces? at a time|(?:row|sequence|text|batch)'s pieces",
        "chunk by chunk, in chunks",
        "the loss is computed in pieces",
    ),
    Phrase(r"how many numbers", "numel, count", "how many numbers a weight stands for"),
    Phrase(
        r"place in the data|places whose|(?:each|every|that|response|token) places?(?= of the| whose| in the row)",
        "position",
        "its place in the data",
    ),
    Phrase(r"in any company|on (?:the|its) company", "batch-invariant", "the same text in any company"),
    Phrase(r"(?:the )?same bits|to the (?:last )?bit", "bitwise identical", "resumed to the same bits"),
    Phrase(
        r"go(?:es)? on(?= (?:from|where|with|behind|under|learning|training|after|when|at the)\b|[.,;:)]|$)",
        "resume, continue",
        "it goes on where it was",
    ),
    Phrase(r"going on (?:from|after|with|behind)", "resuming, continuing", "going on from step 40"),
    Phrase(
        r"taken up(?! by| with)|tak(?:e|es|ing) up (?:again|checkpoints?|the run|a run|what)",
        "resumed",
        "the run can be taken up again",
    ),
    Phrase(r"adapters? learns? on", "resume training the adapter", "the directory whose adapter learns on"),
    Phrase(r"asked to leave", "preempted", "a run that was asked to leave"),
    Phrase(r"leav(?:e|es|ing) in good order", "save a checkpoint, then exit", "leave in good order"),
    Phrase(r"leaving soon", "saving a checkpoint, then exiting", "leaving soon; again: at once"),
    Phrase(r"collect(?:s|ed|ing)? experience", "rollout", "collects experience"),
    Phrase(r"(?:a|the) probe(?: of)?", "policy evaluation", "a probe of the policy's samples"),
    Phrase(r"footprints?|what (?:a|one) (?:step|rank|block|device) holds", "memory estimate", "what a step holds"),
    Phrase(r"reading (?:of )?prompts before decoding", "prefill", "reading prompts before decoding"),
    # Translated idioms
    Phrase(r"so manieth", "a strided slice", "ranks get every so manieth"),
    Phrase(
        r"(?:to|of|by|with|in) so many (?:ranks|rows|tokens|processes|lines)", "that many", "dealt out to so many ranks"
    ),
    Phrase(
        r"(?:one|once|each) a (?:seed|rank|row|line|stage|token|id|run|prompt|combination|document)",
        "one per ...",
        "several paths, one a seed",
    ),
    Phrase(
        r"(?:is|are|was|were) told (?:how|what|of|which|where|that)",
        "receives, is given",
        "it is told how many are done",
    ),
    Phrase(r"told (?:in one line|once a|from|by its)", "reported, determined", "a mistake told in one line"),
    Phrase(r"can(?:no|')t be told(?! apart| to| that)", "cannot be determined", "the format can't be told"),
    Phrase(r"as (?:its|their|the) \w+ tells?", "as its ... reports", "as its launcher tells"),
    Phrase(r"whole or not at all", "atomically", "written whole or not at all"),
    Phrase(r"(?:can|could|to|cannot|not) be had", "is available", "where Chromium can be had"),
    Phrase(r"(?:is|was|were|be) at hand|no \w+ at hand", "available", "no GPU was at hand"),
    Phrase(r"(?:process|which|nobody) is at work", "is using it", "another process is at work in the folder"),
    Phrase(
        r"(?:computed|rounds?|comes? out|asked|drawn|cuts? it) otherwise",
        "differently",
        "the sum was computed otherwise",
    ),
    Phrase(r"what rounding makes of", "up to floating-point rounding", "by what rounding makes of it"),
    Phrase(r"anew|afresh", "again, from scratch", "the stage starts anew"),
    Phrase(r"how surely", "with what confidence", "which is better, and how surely"),
    Phrase(r"hangs? on (?:it|them|that)", "depends on", "what changed and what hangs on it"),
    Phrase(
        r"(?:tokens|documents|chats?|pairs?|it) stands? in (?:its |the |a )?(?:two )?rows?",
        "row layout",
        "a chat as it stands in a row",
    ),
    Phrase(r"adapters?(?: may| can)? stands? on", "apply to", "the base an adapter stands on"),
    Phrase(
        r"where (?:it|they|card|all|a tensor)(?:,? [\w ]{0,22})? lies?|as they lie|what lies (?:beside|on|here|below)",
        "path, stored in",
        "directory: where it lies",
    ),
    Phrase(r"learn(?:s|ing)? beside", "train alongside", "adapters learn beside the weights"),
    Phrase(
        r"(?:by|only|so that|for) who (?:\w+s|go|read|want|find|save)", "whoever, a reader that", "so that who reads it"
    ),
    Phrase(r"end(?:s|ed)? by (?:itself|themselves)", "ended with a stop token", "all four ended by themselves"),
    Phrase(r"of no account", "irrelevant", "its number is of no account"),
    Phrase(r"unwell", "unhealthy", "when a run counts as unwell"),
    Phrase(r"unsaid|without a word", "silently", "the rate jumps unsaid"),
    Phrase(r"mend(?:s|ed|ing)?", "fix", "alignment does not mend that"),
    Phrase(r"(?:the|a|and) cures?", "fix", "the number and the cure"),
    Phrase(r"unforeseen|foreseen|foresaw", "expected", "a mistake nobody foresaw"),
    Phrase(r"rightly", "correctly", "pairs ordered rightly"),
    Phrase(r"before (?:it is|they are) believed", "before use, verified", "checked before they are believed"),
    Phrase(r"to please (?:the|a) \w+", "maximise", "learns to please the reward model"),
    Phrase(r"wants? (?:a )?(?:larger|smaller|\d\S*)", "needs", "a small network wants 1e-3"),
    Phrase(r"in mid-\w+", "mid-epoch, mid-step", "resumes in mid-epoch"),
    Phrase(r"whose (?:answers|responses|words) no", "without human-written ...", "whose answers no human wrote"),
    Phrase(
        r"among how many equally likely",
        "exponential of the mean negative log-likelihood per token",
        "among how many equally likely tokens",
    ),
    Phrase(r"(?<=\| )what it is(?= \|)", "meaning", "| metric | what it is |"),
    Phrase(r"^#+ (?:what|who|how) (?:\S+ ){0,6}(?:is|are|wins?)$", "a noun as the heading", "# What a step is"),
)

_FINDERS = [(re.compile(rf"(?<!\w)(?:{phrase.pattern})(?!\w)", re.IGNORECASE), phrase) for phrase in PHRASES]
_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2[^\n]*", re.MULTILINE | re.DOTALL)
_TICKS = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_FIELD = re.compile(r"\{[^{}]*\}")
_QUOTES = re.compile(r"^([A-Za-z]*)(\"\"\"|'''|\"|')")


class Finding(NamedTuple):
    """A phrase in a file."""

    line: int
    found: str
    use: str


class Text(NamedTuple):
    """Prose that is read as a whole: parts of a file and the line on which each begins."""

    parts: list[tuple[int, str]]


def findings(path: Path) -> list[Finding]:
    """What is found in a file.

    Args:
        path: a .py, .md or .yaml file.

    Returns:
        list[Finding]: by line.
    """
    source = path.read_text(encoding="utf-8")
    texts = {".py": _python_texts, ".md": _markdown_texts, ".yaml": _yaml_texts}[path.suffix](source)
    return sorted(finding for text in texts for finding in _search(text))


def _search(text: Text) -> Iterator[Finding]:
    """Match phrases across line breaks, and find the line that each begins on."""
    starts, lines, joined = [], [], ""
    for first, part in text.parts:
        for number, line in enumerate(_without_code(part).split("\n")):
            starts.append(len(joined))
            lines.append(first + number)
            joined += " ".join(line.split()) + " "
    joined = joined.rstrip()
    for finder, phrase in _FINDERS:
        for match in finder.finditer(joined):
            line = lines[bisect.bisect_right(starts, match.start()) - 1]
            yield Finding(line, match[0], phrase.use)


def _without_code(text: str) -> str:
    """Words in backticks become one word, line breaks stay."""
    return _TICKS.sub(lambda match: "CODE" + "\n" * match[0].count("\n"), text)


def _python_texts(source: str) -> Iterator[Text]:
    """Comments of neighbouring lines, docstrings, and strings that stand side by side, each as one text."""
    strings: list[tuple[int, str]] = []
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = tokenize.tok_name[token.type]
        line = token.start[0]
        if name == "COMMENT":
            if comments and comments[-1][0] != line - 1:
                yield Text(comments)
                comments = []
            comments.append((line, token.string.lstrip("# ")))
        elif name == "STRING" or name == "FSTRING_MIDDLE":
            strings.append((line, _content(token.string) if name == "STRING" else token.string))
        elif name not in {"NL", "FSTRING_START", "FSTRING_END"} and strings:
            yield from _spaced(strings)
            strings = []
    yield from _spaced(strings)
    yield Text(comments)


def _spaced(strings: list[tuple[int, str]]) -> Iterator[Text]:
    """The strings as a text, unless there is no space in them: then they are names."""
    if any(" " in text.strip() for _, text in strings):
        yield Text(strings)


def _content(literal: str) -> str:
    """A string literal without prefix, quotes and replacement fields; line breaks stay."""
    opening = _QUOTES.match(literal)
    assert opening is not None
    text = literal[opening.end() : -len(opening[2])]
    return _FIELD.sub("CODE", text) if "f" in opening[1].lower() else text


def _markdown_texts(source: str) -> Iterator[Text]:
    """Paragraphs, fenced blocks left out."""
    source = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), source)
    paragraph: list[tuple[int, str]] = []
    for number, line in enumerate([*source.split("\n"), ""], 1):
        if line.strip():
            paragraph.append((number, line))
        elif paragraph:
            yield Text([(paragraph[0][0], "\n".join(text for _, text in paragraph))])
            paragraph = []


def _yaml_texts(source: str) -> Iterator[Text]:
    """Comments, those of neighbouring lines as one text."""
    comments: list[tuple[int, str]] = []
    for number, line in enumerate(source.split("\n"), 1):
        found = re.search(r"(?:^|\s)#\s?(.*)$", line)
        if found is None or (comments and comments[-1][0] != number - 1):
            yield Text(comments)
            comments = []
        if found is not None:
            comments.append((number, found[1]))
    yield Text(comments)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        # The table itself is full of what it forbids.
        yield from (
            file for file in inside if file.suffix in {".py", ".md", ".yaml"} and file != Path(__file__).resolve()
        )


def main(args: Sequence[str] | None = None) -> int:
    """Check the paths of the command line.

    Args:
        args: the command line; None reads ``sys.argv``.

    Returns:
        int: 0 nothing found, 1 something found, 2 a path does not exist.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, help="files and folders (default: " + ", ".join(CHECKED) + ")")
    options = parser.parse_args(args)
    paths = [path.resolve() for path in options.paths]
    paths = paths or [ROOT / name for name in CHECKED]
    if missing := [path for path in paths if not path.exists()]:
        print(f"{missing[0]}: no such file or folder", file=sys.stderr)
        return 2
    count = 0
    for file in _files(paths):
        shown = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
        for finding in findings(file):
            print(f"{shown}:{finding.line} {finding.found} -> {finding.use}")
            count += 1
    if count:
        print(f"{count} phrases to rewrite", file=sys.stderr)
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())

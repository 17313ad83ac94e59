"""Constraints on format: lists, titles, JSON, quotation marks, highlights, placeholders."""

import json
import re
from dataclasses import dataclass
from random import Random

from align.sandbox.constraints.constraint import Constraint, lines
from align.sandbox.constraints.editing import content_words, points
from align.sandbox.constraints.english import headline, wording

_BULLET = re.compile(r"[*-]\s+\S")
_NUMBERED = re.compile(r"(\d+)[.)]\s+\S")
_FENCED = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)


@dataclass(frozen=True)
class Bullets(Constraint):
    """Exactly ``count`` bullet points: lines that begin with ``*`` or ``-`` and a space."""

    kind = "bullets"
    group = "format"
    claims = frozenset({"shape", "sentences"})
    phrasings = (
        "Use exactly {count} bullet points, each beginning with an asterisk (*).",
        "Your answer must contain exactly {count} bullet points, like this: * a point.",
        "Answer with {count} bullet points, each on its own line after a * sign.",
    )
    choices = ((2,), (3,), (4,))

    count: int

    def _holds(self, text: str) -> bool:
        return sum(bool(_BULLET.match(line)) for line in lines(text)) == self.count

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return "\n".join(f"* {point}" for point in points(draft, self.count, request, rng))


@dataclass(frozen=True)
class NumberedList(Constraint):
    """Lines numbered from 1 to ``count``, in order."""

    kind = "numbered_list"
    group = "format"
    claims = frozenset({"shape", "sentences", "digits"})
    phrasings = (
        "Answer with a numbered list of exactly {count} items.",
        "Write a list with {count} items, numbered 1., 2. and so on.",
        "Give exactly {count} points as a numbered list.",
    )
    choices = ((2,), (3,), (4,))

    count: int

    def _holds(self, text: str) -> bool:
        found = [int(item[1]) for line in lines(text) if (item := _NUMBERED.match(line))]
        return found == list(range(1, self.count + 1))

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return "\n".join(
            f"{number}. {point}" for number, point in enumerate(points(draft, self.count, request, rng), 1)
        )


@dataclass(frozen=True)
class Title(Constraint):
    """A title in double angular brackets."""

    kind = "title"
    group = "format"
    claims = frozenset({"start"})
    phrasings = (
        "Include a title in double angular brackets, such as <<my title>>.",
        "Your answer must have a title, wrapped in double angular brackets like <<this>>.",
        "Give your answer a title and put it in double angular brackets: <<title>>.",
    )

    def _holds(self, text: str) -> bool:
        return re.search(r"<<[^<>\n]*\w[^<>\n]*>>", text) is not None

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return f"<<{headline(request)}>>\n{draft}"


@dataclass(frozen=True)
class Heading(Constraint):
    """The first line is a Markdown heading."""

    kind = "heading"
    group = "format"
    claims = frozenset({"start", "sentences"})
    phrasings = (
        "Begin with a Markdown heading on a line of its own, such as # Heading.",
        "Put a Markdown heading (a line that begins with #) at the top of your answer.",
    )

    def _holds(self, text: str) -> bool:
        return re.match(r"#{1,6} +\S[^\n]*\n\s*\S", text) is not None

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return f"# {headline(request)}\n{draft}"


@dataclass(frozen=True)
class JSONObject(Constraint):
    """The whole response is a JSON object that is not empty; a Markdown code fence around it is allowed."""

    kind = "json_object"
    group = "format"
    claims = frozenset({"shape", "sentences", "start", "end", "case", "commas", "marks"})
    phrasings = (
        'Write your whole answer as a JSON object, such as {{"answer": "yes"}}.',
        'Your entire answer must be a valid JSON object like {{"text": "my answer"}}, with nothing before or after it.',
        "Answer with a JSON object only.",
    )

    def _holds(self, text: str) -> bool:
        fenced = _FENCED.fullmatch(text)
        try:
            value = json.loads(fenced[1] if fenced else text)
        except (ValueError, RecursionError):
            return False
        return isinstance(value, dict) and bool(value)

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        return json.dumps({wording(request).name: draft}, ensure_ascii=False)


@dataclass(frozen=True)
class Quoted(Constraint):
    """The whole response is in double quotation marks."""

    kind = "quoted"
    group = "format"
    claims = frozenset({"start", "end"})
    phrasings = (
        "Wrap your entire answer in double quotation marks.",
        "Put your whole answer between double quotation marks.",
        "Your answer must begin and end with a double quotation mark.",
    )

    def _holds(self, text: str) -> bool:
        return text[0] in '"“' and text[-1] in '"”' and any(map(str.isalnum, text))

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        inner = draft.replace('"', "'")
        return f'"{inner}"'


@dataclass(frozen=True)
class Highlights(Constraint):
    """At least ``least`` parts between asterisks, as in ``*this*`` or ``**this**``."""

    kind = "highlights"
    group = "format"
    claims = frozenset({"marks"})
    phrasings = (
        "Highlight {least} or more parts of your answer with asterisks, like *this*.",
        "Put {least} or more important words in asterisks, such as *word*.",
        "Mark {least} or more phrases in Markdown, for example *a phrase*.",
    )
    choices = ((1,), (2,))

    least: int

    def _holds(self, text: str) -> bool:
        return len(re.findall(r"(\*{1,2})(?![\s*])[^*\n]*[^*\s]\1", text)) >= self.least

    def edit(self, draft: str, request: str, rng: Random) -> str:
        """See ``Constraint``."""
        text = re.sub(r"\*+(?=\S)|(?<=\S)\*+", "", draft)
        asked = request.lower()
        words = sorted(set(content_words(text)), key=lambda word: (word.lower() not in asked, -len(word), word))
        for word in words[: self.least]:
            text = re.sub(rf"(?<!\w){word}(?!\w)", f"*{word}*", text, count=1)
        return text


@dataclass(frozen=True)
class Placeholders(Constraint):
    """At least ``least`` different placeholders in square brackets."""

    kind = "placeholders"
    group = "format"
    claims = frozenset({"brackets"})
    phrasings = (
        "Include {least} or more placeholders in square brackets, such as [name].",
        "Leave {least} or more blanks to fill in, written in square brackets like [place].",
        "Your answer must contain {least} or more different placeholders in square brackets, like [date].",
    )
    choices = ((1,), (2,))

    least: int

    def _holds(self, text: str) -> bool:
        return len(set(re.findall(r"\[[^\[\]\n]*\w[^\[\]\n]*\]", text))) >= self.least

"""Small edits of a text: drop or add sentences, trim to a length, open and end differently."""

import itertools
import re
from collections.abc import Callable
from random import Random

from align.sandbox.constraints.constraint import number_of_words, word_set
from align.sandbox.constraints.english import spoken, wording
from align.sandbox.world import pick

_SENTENCE = re.compile(r"\S.*?(?:[.!?][\"')\]*_]*(?=\s|\Z)|\Z)", re.DOTALL)
_MARKER = re.compile(r"^\s*(?:[*-]|\d+[.):]|#{1,6}|>)\s+", re.MULTILINE)
_NUMBER = re.compile(r"^\d+([.)]\s)", re.MULTILINE)
_HEAD = re.compile(r"(?:# [^\n]+|<<[^\n]+>>)\n+")
_TASK = re.compile(
    r"\b(?:AI|assistant|SmolLM|chatbot|language model|sentences?|paragraphs?|asterisks?|brackets?|parenthes[ie]s"
    r"|bullets?|JSON|markdown|headings?|capitals?|capital letters|lowercase|uppercase|punctuation"
    r"|(?:question|exclamation|quotation) marks?|the words?|is a word|phrases?|colloquial\w*|grammar|grammatical"
    r"|(?:in)?correct(?:ed)?|prompt|postscript|P\.S|(?:my|your) (?:previous )?(?:answer|response|request)"
    r"|given command|please provide|happy to help|I want you to|the example|rewrite|rewritten|revised|placeholders?"
    r"|word limit|\d+ words|http\S*|www\.\S*)(?!\w)"
    r"|^\W*(?:sure|certainly|here(?:'s| is| are))\b|\[your|the letter \"|```|#\w",
    re.IGNORECASE,
)
"""Sentences about the task instead of the request, of which weak models write many"""
_DEPENDENT = re.compile(r"(?:when|if|while|although|because|as|after|before|since)\b", re.IGNORECASE)
_CLAUSE = word_set("""
    and but because which who when while where so as with for or that if to
    """)
_INCOMPLETE = _CLAUSE | word_set("""
    a an the of in on at by from into is are was were be been being has have had do does did can could will would
    may might must should shall not no very more most my your our their his her its this these those any some every
    each than like it's i'm you're they're we're there's about over under between through their such also just even
    only it they we he she i you what how why
    """)
"""Words after which no sentence ends"""
_PLAIN_STARTS = _INCOMPLETE | word_set("""
    there here then one two three many most people everyone after before during since although though once start
    remember take make keep try use think don't imagine consider
    """)
"""First words that lose their capital letter inside a sentence"""
SHORTEST = 4
"""Words of a sentence that may stand alone"""
_WHOLE = 30
"""Words up to which a draft without a full stop at its end counts as whole: a sampler truncates later than that"""


def split_sentences(text: str) -> list[str]:
    """Sentences with their punctuation; what has no letter, such as the number of an item, joins the next one."""
    parts: list[str] = []
    for part in _SENTENCE.findall(text):
        if parts and not any(map(str.isalpha, parts[-1])):
            parts[-1] += f" {part}"
        else:
            parts.append(part)
    return parts


def content_words(text: str) -> list[str]:
    """Words of five or more letters that mean something by themselves, in their order."""
    return [
        word for word in re.findall(r"(?<![\w'<])[a-zA-Z]{5,}(?![\w'>])", text) if word.lower() not in _PLAIN_STARTS
    ]


def is_finished(sentence: str) -> bool:
    """Whether a sentence ends with ``.``, ``!`` or ``?``, closing marks aside."""
    return sentence.rstrip("\"')]*_”").endswith((".", "!", "?"))


def flat(text: str) -> str:
    """The text in one paragraph, without the markers of lists and headings."""
    return " ".join(_MARKER.sub("", text).split())


def tidied(draft: str, request: str) -> str:
    """A draft without an unfinished end, sentences about the task instead of the request, and repetitions.

    Args:
        draft: sampled text.
        request: which it may repeat.

    Returns:
        The text, which is empty if no more than a few words remain.
    """
    text = draft.translate(str.maketrans("“”’", '""\'')).strip()
    if text[:1] == text[-1:] == '"' and text.count('"') == 2:
        text = text[1:-1].strip()
    text = re.sub(r"(?<=[.!?])(?=\d+\. )", "\n", text)
    whole = number_of_words(text) <= _WHOLE
    given = text.split("\n")
    kept: list[str] = []
    seen = {_bare(request)}
    for number, line in enumerate(given, 1):
        good = []
        for part in split_sentences(line.strip()):
            ended = part if is_finished(part) else _ended(part) if whole or number < len(given) else None
            if ended and not _TASK.search(ended) and _bare(ended) not in seen and any(map(str.islower, ended)):
                good.append(_balanced(ended))
                seen.add(_bare(ended))
        if good or not line.strip():
            kept.append(" ".join(good))
    remaining = cleared("\n".join(kept))
    return remaining if number_of_words(re.sub(r"<<.*>>|# .*", "", remaining)) >= SHORTEST else ""


def cleared(text: str) -> str:
    """The text without runs of blank lines; items of a list are numbered again, and a single one loses its marker."""
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    if len(_MARKER.findall(text)) == 1:
        return _MARKER.sub("", text)
    numbers = itertools.count(1)
    return _NUMBER.sub(lambda found: f"{next(numbers)}{found[1]}", text)


def _ended(part: str) -> str | None:
    """A line that ends without a full stop, with one; None if it breaks off."""
    words = part.split()
    if part.startswith(("# ", "<<")):
        return part
    if len(words) < 2 or part[-1] in ",:;-" or words[-1].lower() in _INCOMPLETE:
        return None
    return f"{part}."


def _bare(sentence: str) -> str:
    return " ".join(re.findall(r"\w+", sentence.lower()))


def _balanced(sentence: str) -> str:
    """Without quotation marks, brackets or stars whose other half is missing."""
    if sentence.count('"') % 2:
        sentence = sentence.replace('"', "")
    for first, second in ("()", "[]", "{}", "<>"):
        if sentence.count(first) != sentence.count(second):
            sentence = sentence.replace(first, "").replace(second, "")
    bullet = sentence[:2] * sentence.startswith("* ")
    body = sentence.removeprefix(bullet)
    return bullet + body.replace("*", "") if body.count("*") % 2 else sentence


def append(text: str, addition: str) -> str:
    """A sentence more, on a line of its own after a list."""
    last = text.rsplit("\n", 1)[-1]
    return f"{text}\n{addition}" if _MARKER.match(last) else f"{text} {addition}"


def add_clause(text: str, clause: str) -> str:
    """A clause more at the end of the last sentence."""
    found = re.search(r"([.!?]?)[\"')\]*_]*\Z", text)
    return text[: found.start()] + clause + (found[1] or ".") if found else text


def split_head(text: str) -> tuple[str, str]:
    """A heading or title on a line of its own, which may be missing, and the rest."""
    found = _HEAD.match(text)
    return (text[: found.end()], text[found.end() :]) if found else ("", text)


def extended(text: str, request: str, rng: Random, *, until: Callable[[str], bool]) -> str:
    """The text and as many further sentences as it takes, while there are any."""
    choices = spoken(request, wording(request).more)
    while choices and not until(text):
        choices.remove(chosen := pick(rng, choices))
        text = append(text, chosen)
    return text


def trimmed(text: str, fits: Callable[[str], bool]) -> str:
    """The longest beginning that fits: whole sentences if possible, else up to a clause, else up to a word.

    Args:
        text: any.
        fits: whether a beginning is short enough, and long enough.

    Returns:
        The beginning with a full stop; the text itself if nothing fits.
    """
    ends = [found.end() for found in _SENTENCE.finditer(text) if any(map(str.isalpha, found[0]))]
    for end in reversed(ends):
        if is_finished(text[:end]) and fits(text[:end]):
            return cleared(text[:end])
    words = [(found.start(), found.end()) for found in re.finditer(r"\S+", text)]
    clauses: list[int] = []
    others: list[int] = []
    for (_, end), (start, stop) in zip(words, words[1:], strict=False):
        head = text[:end]
        fragment = _DEPENDENT.match(text) and "," not in head[:-1]
        if fragment or number_of_words(head) < SHORTEST or head.split()[-1].strip(",;:").lower() in _INCOMPLETE:
            continue
        follows = text[start:stop].strip(",;:").lower()
        (clauses if head[-1] in ",;:" or follows in _CLAUSE else others).append(end)
    for end in (*reversed(clauses), *reversed(others)):
        beginning = _balanced(text[:end].rstrip(" ,;:-"))
        finished = beginning if is_finished(beginning) else f"{beginning}."
        if fits(finished):
            return cleared(finished)
    return text


def sentences_by_line(text: str) -> list[str]:
    """The sentences of a text, which end with their line, whether it has a full stop or not."""
    return [sentence for line in text.split("\n") for sentence in split_sentences(line)]


def without(text: str, wrong: Callable[[str], bool]) -> str:
    """The text without the sentences that are wrong; lines that lose everything go too."""
    kept = []
    for line in text.split("\n"):
        sentences = split_sentences(line)
        good = [part for part in sentences if not wrong(part)]
        if good or not sentences:
            kept.append(" ".join(good))
    return cleared("\n".join(kept))


def opened(text: str, clause: str, sentence: str) -> str:
    """A text that opens with a clause before its first word, or with a sentence where that would not read well."""
    first = re.match(r"[A-Za-z']+", text)
    if first is None or first[0].lower() not in _PLAIN_STARTS:
        between = "\n" if _MARKER.match(text) else " "
        return f"{sentence}{between}{text}"
    keep = first[0] in ("I", "I'm", "I'd", "I've", "I'll")
    return clause + (text if keep else text[0].lower() + text[1:])


def sentences_of(text: str, least: int, request: str, rng: Random) -> list[str]:
    """The sentences of a text in one paragraph, and further ones where there are fewer than ``least``."""
    return split_sentences(extended(flat(text), request, rng, until=lambda so: len(split_sentences(so)) >= least))


def grouped(text: str, count: int, between: str, request: str, rng: Random) -> str:
    """The sentences in ``count`` groups of about the same size, with ``between`` between them."""
    parts = sentences_of(text, count, request, rng)
    bounds = [round(index * len(parts) / count) for index in range(count + 1)]
    return between.join(" ".join(parts[start:stop]) for start, stop in itertools.pairwise(bounds))


def points(text: str, count: int, request: str, rng: Random) -> list[str]:
    """``count`` points of a list: the items of the text if it is a list, else its sentences, else further ones."""
    items = [_MARKER.sub("", line).strip() for line in text.splitlines() if _MARKER.match(line)]
    if len(items) < count:
        items = sentences_of(text, count, request, rng)
    return [item.replace("*", "") for item in items[:count]]

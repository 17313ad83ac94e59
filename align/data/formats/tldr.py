r"""Reddit posts to summarize: ``SUBREDDIT: r/...\n\nTITLE: ...\n\nPOST: ...\n\nTL;DR:``, as in trl-lib/tldr."""

import re

from align.data.formats.fields import Chat, Fields, text

_PROMPT = re.compile(r"(.*?\n\nPOST: ?)(.*)(\n\nTL;DR:\s*)", re.DOTALL)


def read_post(record: Fields, field: str, *, max_post: int) -> Chat:
    """The prompt of a record, its post truncated.

    As in Stiennon et al. 2020 (appendix B) the post loses its last lines until it fits, so that title and ``TL;DR:``
    stay; a single line that is too long loses its last words.

    Args:
        record: the record.
        field: of the prompt.
        max_post: longest post, characters.

    Raises:
        ValueError: the field is missing, not text, or not in this form.
    """
    prompt = text(record, field)
    if (match := _PROMPT.fullmatch(prompt)) is None:
        raise ValueError(f"field {field!r} must have the form '...POST: ...TL;DR:', found {prompt[-40:]!r} at its end")
    before, post, _ = match.groups()
    return [{"role": "user", "content": f"{before}{_truncated(post, max_post)}\n\nTL;DR:"}]


def read_summary(record: Fields, field: str) -> str:
    """The summary in a field, with one space before it: its first word is then a token as the model knows it.

    Raises:
        ValueError: the field is missing or not text.
    """
    return " " + text(record, field).strip()


def _truncated(post: str, limit: int) -> str:
    for end in ("\n", " "):
        while len(post) > limit and end in post:
            post = post[: post.rindex(end)].rstrip()
    return post[:limit]

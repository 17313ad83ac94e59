"""Chat templates as plain Jinja, for programs that lack transformers' ``{% generation %}`` tags."""

import re

_TAGS = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def plain_template(source: str) -> str:
    """A chat template that renders the same without ``{% generation %}``, which marks what the assistant writes.

    The tags become ``{% if true %}`` and ``{% endif %}``, which trim the same white space around them.
    """
    return _TAGS.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", source)

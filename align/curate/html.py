"""What the pages of this room share: a file without scripts that loads nothing, for phones and dark screens too."""

from collections.abc import Mapping
from html import escape

_LIGHT = {"back": "#fff", "text": "#1c2024", "soft": "#60646c", "line": "#d9d9e0", "box": "#f7f7f8", "bar": "#3e7bd6"}
_DARK = {
    "back": "#111113",
    "text": "#edeef0",
    "soft": "#b0b4ba",
    "line": "#363a3f",
    "box": "#18191b",
    "bar": "#70b8ff",
}

_STYLE = """* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); font-size: .875rem; }
summary { cursor: pointer; min-height: 2rem; padding: .2rem 0; color: var(--soft); }
"""


def page(title: str, body: str, *, style: str, light: Mapping[str, str], dark: Mapping[str, str]) -> str:
    """A whole page.

    Args:
        title: plain text.
        body: HTML below the title.
        style: further CSS.
        light: colours that it names as ``var(--NAME)``, beside back, text, soft, line, box and bar.
        dark: the same for readers who prefer the dark.
    """
    colours = (
        f":root {{ color-scheme: light dark; {_variables({**_LIGHT, **light})} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables({**_DARK, **dark})} }} }}\n"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{colours}{_STYLE}{style}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())

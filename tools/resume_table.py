"""Write the table of docs/resume.md: what each setting does when a run resumes with another value.

    python tools/resume_table.py

The settings are found by walking the command line's parser and the signatures of all stages and data modules; what they
do is declared in align/training/resume_rules.py. ``tests/training/test_resume_rules.py`` fails for a setting without a
rule, a rule without a setting, and a page that is not current.
"""

import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path

import lightning.pytorch as pl
from torch import nn

import align.algorithms
import align.data
from align.cli.lightning import make_cli
from align.cli.signatures import admits_null, classes_in, settings_of
from align.training.resume import flat_settings
from align.training.resume_rules import RULES, Behaviour, rule_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/resume.md"
_BEGIN, _END = "<!-- begin of the table -->\n", "<!-- end of the table -->"
_SECTIONS = {"model": "Stages", "data": "Data modules", "trainer": "Trainer"}
_REST = "Run and callbacks"


@cache
def walk_settings() -> dict[str, set[str]]:
    """Every setting that a recipe can have.

    Returns:
        dict: key without ``init_args`` -> names of the stages or data modules that have it; empty for other settings.
    """
    found: dict[str, set[str]] = {key: set() for key in _run_settings()}
    for group, package, base in (
        ("model", align.algorithms, pl.LightningModule),
        ("data", align.data, pl.LightningDataModule),
    ):
        for name in package.__all__:
            kind = getattr(package, name)
            for key in (group, f"{group}.code", *_settings(kind, group)) if issubclass(kind, base) else ():
                found.setdefault(key, set()).add(name)
    return found


def table() -> str:
    """The Markdown of all sections."""
    settings = walk_settings()
    sections: dict[str, list[str]] = {title: [] for title in (*_SECTIONS.values(), _REST)}
    for key, rule in RULES.items():
        top = key.partition(".")[0]
        owners = set().union(*(names for name, names in settings.items() if _rule_key(name) == key))
        what = f"{rule.behaviour}, if its content differs" if rule.by_content else rule.behaviour
        cells = [f"`{key}`", ", ".join(sorted(owners)), what, rule.why]
        title = _SECTIONS.get(top, _REST)
        sections[title].append(f"| {' | '.join(cells if top in ('model', 'data') else cells[:1] + cells[2:])} |")
    return "\n".join(_section(title, rows) for title, rows in sections.items())


def page_with(content: str) -> str:
    """The page with ``content`` as its table."""
    head, _, rest = PAGE.read_text().partition(_BEGIN)
    return head + _BEGIN + "\n" + content + "\n" + _END + rest.partition(_END)[2]


def _section(title: str, rows: list[str]) -> str:
    owner = title in ("Stages", "Data modules")
    names = ["setting", *(["of"] if owner else []), "another value", "because, or applies"]
    head = [f"## {title}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return "\n".join([*head, *rows, ""])


def _rule_key(key: str) -> str:
    """The key in ``RULES`` of the rule that covers a setting; empty if there is none."""
    rule = rule_of(key)
    parts = key.split(".")
    candidates = [key, *(".".join([*parts[:end], "*"]) for end in range(len(parts), 0, -1))]
    return next((name for name in candidates if rule is not None and RULES.get(name) is rule), "")


def _run_settings() -> Iterator[str]:
    """Settings that belong to no stage and no data module, from the parser with the defaults of a recipe."""
    config = make_cli(["--config", str(ROOT / "recipes/tiny/pretrain.yaml")], parse_only=True).config.as_dict()
    yield from flat_settings(
        {name: value for name, value in config.items() if name not in ("model", "data", "config", "ckpt_path")}
    )


def _settings(kind: type, prefix: str) -> Iterator[str]:
    """The settings of a class: its constructor's parameters, those of the groups and variants among them included."""
    for name, parameter in settings_of(kind).items():
        key, kinds = f"{prefix}.{name}", classes_in(parameter.annotation)
        if any(issubclass(each, nn.Module) for each in kinds):  # built in Python only
            continue
        groups = [each for each in kinds if is_dataclass(each) and not inspect.isabstract(each)]
        variants = [each for base in kinds if inspect.isabstract(base) for each in _subclasses(base)]
        if not groups or admits_null(parameter.annotation):
            yield key
        for part in (*groups, *variants):
            yield from _settings(part, key)


def _subclasses(base: type) -> list[type]:
    direct = [kind for kind in base.__subclasses__() if kind.__module__.startswith("align.")]
    return [kind for each in direct for kind in (each, *_subclasses(each)) if not inspect.isabstract(kind)]


def undeclared() -> list[str]:
    """Settings without a rule."""
    return sorted(key for key in walk_settings() if rule_of(key) is None)


def without_setting() -> list[str]:
    """Rules that cover no setting."""
    used = {_rule_key(key) for key in walk_settings()}
    return sorted(key for key in RULES if key not in used)


if __name__ == "__main__":
    assert all(isinstance(rule.behaviour, Behaviour) for rule in RULES.values())
    PAGE.write_text(page_with(table()))

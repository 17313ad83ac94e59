"""Package the top-level ``recipes/`` inside ``align``; everything else is declared in pyproject.toml."""

from setuptools import find_packages, setup

# pyproject.toml can find packages or map one to another folder, but not both.
setup(
    packages=[*find_packages(include=["align", "align.*"]), "align.recipes"],
    package_dir={"align.recipes": "recipes"},
    package_data={
        "align.arena": ["*.html"],
        "align.compare": ["*.jinja", "*.css", "*.js"],
        "align.plan": ["*.yaml"],
        "align.recipes": ["*/*.yaml", "*/*.jsonl", "*/*/*.json"],
    },
)

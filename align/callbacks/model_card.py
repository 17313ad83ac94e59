"""The model card, README.md of a model directory."""

import json
from typing import Any

from align.io.provenance import first_ancestor, front_matter, hub_datasets, origin_of
from align.model.gpt import GPT, ScalarGPT

_CARD = """{front}

# {title}, {parameters} parameters

Made by [align]({home}) {version}, stage `{stage}`, {step} optimizer steps.

| | |
|---|---|
| parent | {parent} |
| shape | {layers} layers, width {width}, {heads} heads, context {context}, vocabulary {vocab} |
| tokenizer | `{tokenizer}` |

## Metrics at the time of writing

{metrics}

## Data

{data}

## Use

```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("this directory")
tokenizer = AutoTokenizer.from_pretrained("this directory")
```

or `{command}`.

## Limits

Trained on the data above only; not evaluated for safety, and not intended for decisions about people.

## Recipe

```json
{recipe}
```
"""


def model_card(manifest: dict[str, Any], network: GPT | ScalarGPT) -> str:
    """README.md of a model directory.

    Args:
        manifest: what ``align.json`` says.
        network: the network beside it.

    Returns:
        str: Markdown with the Hub's metadata header.
    """
    config, parent = network.config, manifest["parent"]
    metrics = [f"| {name} | {float(value):.4g} |" for name, value in sorted(manifest["metrics"].items())]
    data = [f"- `{file}`: `{digest[:16]}`" for file, digest in manifest["data"].items()]
    scalar = isinstance(network, ScalarGPT)
    base = first_ancestor(parent)
    front = front_matter(
        {
            "library_name": "transformers",
            "pipeline_tag": "text-classification" if scalar else "text-generation",
            "base_model": base and base.hub_id,
            "datasets": hub_datasets(manifest["data"]),
            "tags": ["lightning-align", manifest["stage"]],
        }
    )
    return _CARD.format(
        front=front,
        title=f"{manifest['stage']} of {base.name}" if base else manifest["stage"],
        auto="AutoModelForSequenceClassification" if scalar else "AutoModelForCausalLM",
        command="align generate POLICY --prompt TEXT --judge DIRECTORY"
        if scalar
        else "align generate DIRECTORY --prompt TEXT",
        stage=manifest["stage"],
        parameters=_short(network.num_parameters()),
        home="https://pypi.org/project/lightning-align/",
        version=manifest["libraries"].get("lightning-align", ""),
        step=manifest["step"],
        parent=f"{_shown(parent['directory'])}, weights `{(parent['weights'] or 'unknown')[:16]}`"
        if parent
        else "none: fresh",
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        context=config.context,
        vocab=config.vocab_size,
        tokenizer=(manifest["tokenizer"] or "none")[:16],
        metrics="\n".join(["| metric | value |", "|---|---|", *metrics]),
        data="\n".join(data) or "not recorded",
        recipe=json.dumps(manifest["recipe"], indent=2, default=str),
    )


def _shown(source: str) -> str:
    origin = origin_of(source)
    return f"`{origin.hub_id or origin.name}`"


def _short(count: int) -> str:
    """12345678 -> 12.3M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)

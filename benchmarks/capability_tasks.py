"""Four capability tasks from data at hand, as tasks of lm-evaluation-harness, to see what alignment cost.

python benchmarks/capability_tasks.py runs/abilities --instructions ../shared/data/instructions-1100.json \
    --gsm8k ../shared/data/gsm8k-test.jsonl --texts recipes/smollm2-135m/text.jsonl
align eval base=HuggingFaceTB/SmolLM2-135M-Instruct dpo=runs/smollm2-135m/seed0/dpo \
    --tasks facts arithmetic python_docs next_sentence --include runs/abilities --limit 200

Each item has a beginning and choices of which one is right; ``acc`` is the share of items whose right one is the most
likely, ``acc_norm`` the same by log-likelihood per character, for choices of different lengths (next_sentence).

- ``facts``: instructions with a short answer ("The capital of Norway is" Oslo). The wrong choices are the answers to
  the three instructions with the most words in common, so that the kind of answer gives nothing away.
- ``arithmetic``: the first calculation in the worked solution of a GSM8K problem, after problem and solution up to
  there. The wrong results are one more, one less and ten more.
- ``python_docs``: what a function of Python's standard library does, in the first sentence of its docstring. The wrong
  ones are sentences of the same module. They depend on Python's version.
- ``next_sentence``: the sentence that follows two others in an ordinary text. The wrong ones are sentences of the same
  text.

The choices are not checked by people: some wrong ones are acceptable (a second synonym), so the best score is below 1.
It is the same for all models, whose difference is what counts.
"""

import argparse
import importlib
import inspect
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_ANSWER = re.compile(r"([^.\n]{8,160}\b(?:is|are)) (?:an? |the )?([^.,;:\n]{1,40})\.")
_FREE = re.compile(r"rewrite|fill|use |generate|create|describe", re.IGNORECASE)
"""Instructions with many right answers"""
_CALCULATION = re.compile(r"<<[^=<>]+=(\d+)>>")
_MODULES = [
    *("bisect", "base64", "calendar", "cmath", "collections", "copy", "csv", "datetime", "decimal", "difflib"),
    *("fnmatch", "fractions", "functools", "glob", "gzip", "heapq", "html", "itertools", "json", "math", "operator"),
    *("os", "os.path", "pathlib", "pickle", "platform", "random", "re", "secrets", "shlex", "shutil", "socket"),
    *("statistics", "string", "struct", "subprocess", "sys", "tempfile", "textwrap", "threading", "time"),
    *("unicodedata", "urllib.parse", "uuid", "zipfile", "zlib"),
]


class Item(NamedTuple):
    """A question with its choices.

    Attributes:
        text: what stands before the choice.
        choices: at least two, all different.
        label: index of the right one.
    """

    text: str
    choices: list[str]
    label: int


def _item(rng: random.Random, text: str, right: str, wrong: Sequence[str]) -> Item:
    choices = [right, *wrong]
    rng.shuffle(choices)
    return Item(text, choices, choices.index(right))


def facts(records: Iterable[dict[str, str]]) -> Iterator[Item]:
    """Of records ``{"instruction", "input", "output"}``."""
    rng, found = random.Random(0), []
    for record in records:
        asked = f"{record['instruction']} {record['input']}".strip()
        match = _ANSWER.fullmatch(record["output"].strip())
        answer = match[2].strip("\"' ") if match else ""
        given = answer.lower() in asked.lower()
        if match and answer and len(answer.split()) <= 3 and not given and not _FREE.match(asked):
            found.append((asked, match[1], answer))
    words = [set(re.findall(r"\w+", asked.lower())) for asked, _, _ in found]
    for number, (asked, beginning, answer) in enumerate(found):
        near = sorted(
            (other for other in range(len(found)) if found[other][0] != asked),
            key=lambda other: -len(words[number] & words[other]) / len(words[number] | words[other]),
        )
        others = dict.fromkeys(found[other][2] for other in near)
        wrong = [one for one in others if one.lower() != answer.lower() and one.lower() not in asked.lower()][:3]
        if len(wrong) == 3:
            yield _item(rng, f"Question: {asked}\nAnswer: {beginning}", answer, wrong)


def arithmetic(records: Iterable[dict[str, str]]) -> Iterator[Item]:
    """Of records ``{"question", "answer"}`` with calculations between ``<<`` and ``>>``."""
    rng = random.Random(0)
    for record in records:
        match = _CALCULATION.search(record["answer"])
        before = record["answer"][: match.start()].rstrip() if match else ""
        if match and before.endswith("=") and "<<" not in before:
            value = int(match[1])
            wrong = [str(one) for one in (value + 1, value - 1 if value else value + 2, value + 10)]
            yield _item(rng, f"Question: {record['question']}\nAnswer: {before}", str(value), wrong)


def python_docs() -> Iterator[Item]:
    """Of the standard library of this Python."""
    rng = random.Random(0)
    for module in _MODULES:
        summaries: dict[str, str] = {}
        for name, value in sorted(vars(importlib.import_module(module)).items()):
            imported = getattr(value, "__module__", module) in {*_MODULES} - {module}
            if name.startswith("_") or not callable(value) or imported:
                continue
            if summary := _summary(name, inspect.getdoc(value) or ""):
                summaries.setdefault(summary, name)
        for summary, name in summaries.items():
            others = sorted(set(summaries) - {summary})
            if len(others) >= 3:
                yield _item(rng, f"In Python, {module}.{name} does this:", summary, rng.sample(others, 3))


def _summary(name: str, doc: str) -> str | None:
    """The first sentence of a docstring; None if it has the function's name, or is very short or long."""
    for paragraph in doc.split("\n\n"):
        sentence = re.split(r"(?<=[.])\s", " ".join(paragraph.split()))[0]
        if 4 <= len(sentence.split()) <= 20 and sentence.endswith(".") and not re.search(r"[()>]", sentence):
            return None if name.lower() in sentence.lower() else sentence
    return None


def next_sentence(texts: Iterable[str]) -> Iterator[Item]:
    """Of documents of several sentences."""
    rng = random.Random(0)
    for text in texts:
        sentences = [one for one in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if len(one.split()) >= 4]
        for place in range(2, len(sentences)):
            others = dict.fromkeys([*sentences[: place - 2], *sentences[place + 1 :]])
            wrong = [one for one in others if one not in sentences[place - 2 : place + 1]]
            if len(wrong) >= 3:
                context = " ".join(sentences[place - 2 : place])
                yield _item(rng, context, sentences[place], rng.sample(wrong, 3))


def write_task(folder: Path, name: str, items: Iterable[Item]) -> int:
    """A task as a YAML file with its items beside it, shuffled, because ``--limit`` takes the first ones.

    Returns:
        int: number of items.
    """
    rows: list[dict[str, Any]] = [item._asdict() for item in items]
    random.Random(0).shuffle(rows)
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    lines = [
        f"task: {name}",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {json.dumps(str(file.resolve()))}}}}}",
        "test_split: test",
        "output_type: multiple_choice",
        "num_fewshot: 0",
        'doc_to_text: "{{text}}"',
        'doc_to_choice: "{{choices}}"',
        "doc_to_target: label",
        "metric_list: [{metric: acc}, {metric: acc_norm}]",
    ]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    return len(rows)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Write the tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the tasks are written")
    parser.add_argument("--instructions", type=Path, required=True, help="JSON list of instruction, input and output")
    parser.add_argument("--gsm8k", type=Path, required=True, help="JSONL of question and answer")
    parser.add_argument("--texts", type=Path, required=True, help="JSONL of {'text': ...}")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    tasks: dict[str, Callable[[], Iterable[Item]]] = {
        "facts": lambda: facts(json.loads(args.instructions.read_text(encoding="utf-8"))),
        "arithmetic": lambda: arithmetic(read_lines(args.gsm8k)),
        "python_docs": python_docs,
        "next_sentence": lambda: next_sentence(record["text"] for record in read_lines(args.texts)),
    }
    for name, make in tasks.items():
        print(f"{args.folder / name}.yaml: {write_task(args.folder, name, make())} items")


if __name__ == "__main__":
    main()

"""A small raw folder in which the number of every kind of dirt is known."""

import json
import random
from pathlib import Path

WORDS = (
    *("the", "of", "and", "to", "in", "that", "have", "with", "because", "before", "after", "under", "river", "stone"),
    *("window", "people", "house", "light", "water", "summer", "winter", "children", "garden", "teacher", "market"),
    *("bridge", "letter", "morning", "evening", "mountain", "village", "kitchen", "music", "silver"),
)
ITEM = (
    "A baker sold forty loaves on Monday and half as many loaves on Tuesday and wants to know how many loaves were sold"
)
EMAIL, PHONE, KEY = "jane.doe@gmail.com", "+1 415 233 9812", "sk-" + "a1B2" * 8

RECIPE = {
    "tasks": 3,
    "validation": 0.2,
    "sources": {
        "prose": {
            "reader": {
                "class_path": "align.curate.cleaning.TextFiles",
                "init_args": {"data_folder": "${inputs}/prose", "suffixes": [".txt"]},
            },
            "steps": [
                {
                    "class_path": "align.curate.cleaning.Language",
                    "init_args": {"languages": ["en"], "threshold": 0.2},
                }
            ],
        },
        "code": {
            "reader": {
                "class_path": "align.curate.cleaning.TextFiles",
                "init_args": {"data_folder": "${inputs}/code", "suffixes": [".py"]},
            },
            "steps": [{"class_path": "align.curate.cleaning.CodeQuality"}],
        },
    },
    "steps": [
        {"class_path": "align.curate.cleaning.ExactDuplicates"},
        {"class_path": "align.curate.cleaning.NearDuplicates"},
        {
            "class_path": "align.curate.cleaning.Decontaminate",
            "init_args": {"sets": {"loaves": {"files": "${inputs}/loaves.jsonl", "fields": ["question"]}}},
        },
        {"class_path": "align.curate.cleaning.MaskPersonalData"},
    ],
}


def text(rng: random.Random, words: int = 200) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)) + "."


def plant(folder: Path, *, documents: int = 30) -> dict[str, set[str]]:
    """Write the files; what is planted: step to ids."""
    rng = random.Random(0)
    prose, code = folder / "prose", folder / "code"
    for path in (prose / "deep", code):
        path.mkdir(parents=True)
    texts = [text(rng) for _ in range(documents)]
    for number, one in enumerate(texts):
        (prose / f"a{number:03d}.txt").write_text(one)
    (prose / "deep/copy0.txt").write_text(texts[0])
    (prose / "deep/copy1.txt").write_text(texts[0])
    for number in (1, 2):
        words = texts[number].split()
        words[100] = "altered"
        (prose / f"near{number}.txt").write_text(" ".join(words))
    (prose / "french.txt").write_text("Bonjour à tous, voici un texte qui parle de la maison et du jardin. " * 8)
    (prose / "leak.txt").write_text(f"{text(rng)} {ITEM.upper()}? {text(rng)}")
    (prose / "person.txt").write_text(f"{text(rng)} Write to {EMAIL} or call {PHONE}; {KEY}. {text(rng)}")
    (prose / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (prose / "notes.csv").write_text("not,read\n")
    (code / "fine.py").write_text("def add(first, second):\n    return first + second\n")
    (code / "minified.py").write_text("x=" + "[1,2,3]+" * 200 + "[]\n")
    (folder / "loaves.jsonl").write_text(
        json.dumps({"question": ITEM}) + "\n" + json.dumps({"question": "Why?"}) + "\n"
    )
    return {
        "prose-Language": {"french.txt"},
        "code-CodeQuality": {"minified.py"},
        "ExactDuplicates": {"a000.txt", "deep/copy0.txt", "deep/copy1.txt"},  # two of the three
        "NearDuplicates": {"a001.txt", "near1.txt", "a002.txt", "near2.txt"},  # one of each pair
        "Decontaminate": {"leak.txt"},
    }

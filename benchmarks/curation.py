"""`align data clean` on real files with planted dirt: what each filter finds, time, memory, kills, one worker and two.

    python benchmarks/curation.py FOLDER [--megabytes 220] [--kills 5] [--out benchmarks/results/curation.json]

FOLDER has gsm8k-test.jsonl and tinyshakespeare.txt. The raw files are those of this Python: its library, the packages
installed with it, their documentation and licences. Planted among them, with known ids: exact and near copies, texts in
other languages, repetition, texts too short, minified code, items of the test set, personal data; and as controls
passages of Shakespeare and code with nothing wrong.
"""

import argparse
import gzip
import json
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase

import yaml

from align.curate.minhash import shingles_of

EACH = 100
"""Documents of each kind that are planted"""
FOREIGN = {
    "fr": "La maison est au bord de la rivière. Les enfants jouent dans le jardin après l'école. Il fait froid ce jour "
    "et la neige couvre les toits. Un marché ouvre à sept heures. Nous avons mangé du pain avec du fromage. Le train "
    "est parti sans nous. Ma sœur travaille dans une bibliothèque. Le chat dort près de la fenêtre.",
    "de": "Das Haus steht am Ufer des Flusses. Die Kinder spielen nach der Schule im Garten. Heute Morgen ist es kalt "
    "und Schnee liegt auf den Dächern. Der Markt öffnet um sieben Uhr. Wir haben Brot mit Käse gegessen. Der Zug ist "
    "ohne uns abgefahren. Meine Schwester arbeitet in einer Bibliothek. Die Katze schläft am Fenster.",
    "es": "La casa está a la orilla del río. Los niños juegan en el jardín después de la escuela. Esta tarde hace frío "
    "y la nieve cubre los tejados. El mercado abre a las siete. Hemos comido pan con queso. El tren se fue sin "
    "nosotros. Mi hermana trabaja en una biblioteca. El gato duerme cerca de la ventana.",
}
PERSONAL = ("email addresses", "phone numbers", "public IP addresses", "card numbers", "keys and tokens")
FINDS = {
    "foreign": "prose-Language",
    "repeated": "prose-GopherRepetition",
    "too short": "prose-GopherQuality",
    "minified": "code-CodeQuality",
    "exact copy": "ExactDuplicates",
    "near copy": "NearDuplicates",
    "leaked": "Decontaminate",
}
"""Kind of dirt -> the step that is there for it"""


def recipe(raw: Path) -> dict:
    """That of recipes/corpus, with decontamination."""
    content = yaml.safe_load((Path(__file__).parents[1] / "recipes/corpus/clean.yaml").read_text())
    for name in ("code", "prose"):
        content["sources"][name]["reader"]["init_args"]["data_folder"] = str(raw / name)
    sets = {"gsm8k": {"files": str(raw / "gsm8k-test.jsonl"), "fields": ["question"]}}
    step = {"class_path": "align.curate.cleaning.Decontaminate", "init_args": {"sets": sets}}
    content["steps"].insert(-1, step)
    return content


def real_files(megabytes: float) -> Iterator[tuple[str, Path]]:
    """Kind and path of files of this Python, prose first."""
    roots = list(dict.fromkeys([sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/share/doc"]))
    left = megabytes * 1e6
    for kind, suffixes in (("prose", (".txt", ".md", ".rst")), ("code", (".py",))):
        for root in roots:
            for folder, _, names in sorted(os.walk(root)):
                for name in sorted(names):
                    path = Path(folder, name)
                    if name.endswith(suffixes) and path.is_file() and not path.is_symlink():
                        left -= path.stat().st_size
                        yield kind, path
                        if left < 0:
                            return


def plant(raw: Path, data: Path, megabytes: float) -> dict:
    """Write the raw folder; kind -> ids, and the personal strings."""
    rng = random.Random(0)
    for kind, path in real_files(megabytes):
        target = raw / kind / str(path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.copy(data / "gsm8k-test.jsonl", raw)
    items = [json.loads(line)["question"] for line in (data / "gsm8k-test.jsonl").open()]
    speeches = (data / "tinyshakespeare.txt").read_text().split("\n\n")
    passages = ["\n\n".join(speeches[start : start + 5]) for start in range(0, len(speeches) - 5, 5)]
    passages = [passage for passage in passages if len(passage.split()) >= 80]
    rng.shuffle(passages)
    supply = iter(passages)
    planted: dict[str, list[str]] = {}

    def text() -> str:
        return next(supply)

    def write(kind: str, number: int, content: str, *, code: bool = False) -> str:
        name = f"planted/{kind.replace(' ', '-')}-{number:03d}{'.py' if code else '.txt'}"
        path = raw / ("code" if code else "prose") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        planted.setdefault(kind, []).append(name)
        return content

    controls = [write("control", number, text()) for number in range(4 * EACH)]
    personal: list[list[str]] = []
    decoys: list[list[str]] = []
    for number in range(EACH):
        body = "".join(_function(rng) for _ in range(4))
        write("control", number, body, code=True)
        write("exact copy", number, controls[number])
        words = controls[EACH + number].split(" ")
        for place in rng.sample(range(len(words)), max(1, len(words) // 100)):
            words[place] = "another"
        write("near copy", number, " ".join(words))
        language = rng.choice([*FOREIGN.values()]).split(". ")
        rng.shuffle(language)
        write("foreign", number, ". ".join(language) + f" {number}.")
        line = controls[2 * EACH + number].split("\n")[1]
        write("repeated", number, "\n".join([line] * rng.randint(10, 30)))
        write("too short", number, " ".join(controls[3 * EACH + number].split()[:40]))
        write("minified", number, "x=[" + ",".join(str(rng.randrange(10**6)) for _ in range(500)) + "]\n", code=True)
        write("leaked", number, f"{text()}\n\n{rng.choice(items)}\n\n{text()}")
        private = [
            f"{rng.choice(['ann', 'bo', 'cy'])}.{rng.randrange(999)}@gmail.com",
            f"+1 {rng.randrange(201, 989)} 233 {rng.randrange(1000, 9999)}",
            f"8.{rng.randrange(1, 250)}.{rng.randrange(1, 250)}.{rng.randrange(1, 250)}",
            _card(rng),
            "ghp_" + "".join(rng.choice("abcdefXYZ0123456789") for _ in range(36)),
        ]
        harmless = [
            f"user{rng.randrange(999)}@example.com",
            f"(212) 555-01{rng.randrange(10, 99)}",
            f"10.0.{rng.randrange(250)}.{rng.randrange(250)}",
            f"order 9{rng.randrange(10**8, 10**9)}",
            f"version {rng.randrange(9)}.{rng.randrange(20)}.{rng.randrange(20)}",
        ]
        written = f"{text()}\nContact: {', '.join(private)}. See {', '.join(harmless)}.\n{text()}"
        write("personal", number, written)
        personal.append(private)
        decoys.append(harmless)
    return {"ids": planted, "personal": personal, "decoys": decoys}


def _function(rng: random.Random) -> str:
    first, second, third = ("".join(rng.choices(ascii_lowercase, k=7)) for _ in range(3))
    return f"def {first}({second}):\n    {third} = {second} * {rng.random()}\n    return {third} + {rng.random()}\n"


def _card(rng: random.Random) -> str:
    """A number with a valid check digit."""
    digits = [4, *(rng.randrange(10) for _ in range(14))]
    total = sum(sum(divmod(2 * digit, 10)) for digit in digits[-1::-2]) + sum(digits[-2::-2])
    return "".join(map(str, [*digits, -total % 10]))


def records(folder: Path) -> Iterator[dict]:
    for path in sorted(folder.rglob("*.jsonl.gz")):
        with gzip.open(path, "rt") as lines:
            yield from map(json.loads, lines)


def found(planted: dict, out: Path) -> dict:
    """Precision and recall of each step on what was planted."""
    kinds = {name: kind for kind, names in planted["ids"].items() for name in names}
    originals = {f"planted/control-{number:03d}.txt" for number in range(2 * EACH)}
    table = {step.name: Counter[str]() for step in (out / "removed").iterdir()}
    for step, counts in table.items():
        for record in records(out / "removed" / step):
            kind = kinds.get(record["id"], "")
            # Of a copy and its original either may be kept.
            if record["id"] in originals and step in ("ExactDuplicates", "NearDuplicates"):
                kind = "exact copy" if step == "ExactDuplicates" else "near copy"
            counts[kind] += bool(kind)
    result = {}
    for kind, step in FINDS.items():
        right, all_removed = table.get(step, Counter())[kind], table.get(step, Counter()).total()
        elsewhere = {other: counts[kind] for other, counts in table.items() if other != step and counts[kind]}
        result[kind] = {
            "step": step,
            "planted": EACH,
            "found": right,
            "recall": right / EACH,
            "precision": right / all_removed if all_removed else None,
            "found by other steps": elsewhere,
        }
    kept = {record["id"]: record["text"] for record in records(out / "corpus") if record["id"].startswith("planted/")}
    texts = [kept.get(name) for name in planted["ids"]["personal"]]
    result["personal"] = {
        name: {
            "masked": sum(
                values[part] not in text for values, text in zip(planted["personal"], texts, strict=True) if text
            ),
            "decoys kept": sum(
                values[part] in text for values, text in zip(planted["decoys"], texts, strict=True) if text
            ),
            "of": sum(text is not None for text in texts),
        }
        for part, name in enumerate(PERSONAL)
    }
    result["controls removed"] = {step: counts["control"] for step, counts in table.items() if counts["control"]}
    return result


def near_copies_are_near(out: Path, *, limit: int = 300) -> dict:
    """Of a sample of all near duplicates removed: how many have a kept document with a Jaccard similarity of 0.5."""
    removed = [record["text"] for record in records(out / "removed/NearDuplicates")]
    sample = random.Random(0).sample(removed, min(limit, len(removed)))
    kept = [record["text"] for record in records(out / "corpus")]
    ours, others = shingles_of(sample), shingles_of(kept)
    owners = [0] * len(others.values)
    for text in range(len(kept)):
        owners[others.offsets[text] : others.offsets[text + 1]] = [text] * (
            others.offsets[text + 1] - others.offsets[text]
        )
    places: dict[int, list[int]] = {}
    wanted = set(ours.values.tolist())
    for value, owner in zip(others.values.tolist(), owners, strict=True):
        if value in wanted:
            places.setdefault(value, []).append(owner)
    good = 0
    for text in range(len(sample)):
        own = ours.of(text).tolist()
        shared = Counter(owner for value in own for owner in places.get(value, ()))
        best = max(
            (count / (len(own) + len(others.of(owner)) - count) for owner, count in shared.most_common(20)), default=0.0
        )
        good += best >= 0.5
    return {"removed": len(removed), "looked at": len(sample), "with a kept document at 0.5 or more": good}


def run(command: list[str], *, kills: int = 0, seconds: float = 0.0) -> dict:
    """Time and memory of a run, which is killed and resumed a number of times at random moments first."""
    rng = random.Random(1)
    killed = []
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait = rng.uniform(0.05, 0.6) * seconds
            process.wait(wait)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed.append(round(wait, 1))
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_mib": round(after.ru_maxrss / 1024),
        "killed_after": killed,
    }


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): gzip.decompress(path.read_bytes()) for path in folder.rglob("*.jsonl.gz")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=220)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--work", type=Path, help="folder to keep; default: a temporary one")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        raw = work / "raw"
        planted = plant(raw, options.folder, options.megabytes)
        config = work / "clean.yaml"
        config.write_text(yaml.safe_dump(recipe(raw)))
        clean = [sys.executable, "-m", "align", "data", "clean", "--config", str(config), "--out"]
        one = run([*clean, str(work / "one")])
        two = run([*clean, str(work / "two"), "--executor.workers", "2"])
        wall = two["seconds"]
        drilled = run([*clean, str(work / "killed"), "--executor.workers", "2"], kills=options.kills, seconds=wall / 3)
        same = files(work / "one/corpus")
        report = json.loads((work / "one/report.json").read_text())
        megabytes = report["read"]["bytes"] / 1e6
        result = {
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "read": report["read"],
            "kept": report["kept"],
            "steps": [{key: step[key] for key in ("step", "before", "after", "seconds")} for step in report["steps"]],
            "one worker": one | {"mb_per_cpu_second": round(megabytes / one["cpu_seconds"], 2)},
            "two workers": two | {"same corpus": files(work / "two/corpus") == same},
            "killed": drilled | {"same corpus": files(work / "killed/corpus") == same},
            "planted": found(planted, work / "one"),
            "near copies": near_copies_are_near(work / "one"),
        }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

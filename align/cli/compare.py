"""``align compare``: several models on the same prompts, with paired statistics and a report."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.cli.device import DeviceSettings, network_device
from align.cli.engine import EngineFlag
from align.cli.errors import UsageError
from align.cli.harness import HarnessFlags
from align.cli.model_path import named_models
from align.cli.prompt_file import read_records
from align.cli.settings import parse_settings, require_at_least, setting
from align.cli.text_files import read_texts
from align.io.atomic import replacing_file
from align.io.progress import progress_bar

if TYPE_CHECKING:
    from align.compare.candidates import Candidate
    from align.compare.comparison import Task
    from align.compare.judges import Judge


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """Sample responses of several models to the same prompts from the same seeds, and score them.

    The report says which model is better, by how much and with what confidence, how far each moved from the baseline,
    and at what cost.

    Raises:
        ValueError: a setting is invalid.
    """

    models: tuple[str, ...] = setting(positional=True, metavar="[NAME=]PATH[,PATH...]")
    """Folder of a stage, model directory, GGUF file or Hub id; several paths are several seeds of one model; the first
    model is the baseline; the default name is the folder's"""
    out: str
    """Folder of the report"""
    prompts: str | None = None
    """JSONL file of {'prompt': text or messages}, or a file or Hub data set in another prompt format; null:
    data/prompts_test.jsonl beside the baseline's run"""
    prompt_format: str | None = None
    """Format of --prompts, such as TLDR (docs/data.md); null: detected"""
    limit: int = 200
    """Largest number of prompts to read"""
    judge: tuple[str, ...] = setting((), metavar="[NAME=]JUDGE")
    """What scores the responses: sandbox, constraints, constraints_strict, exact_answer, module:function (prompts,
    responses) -> scores, the class path of a Reward, {class_path: CLASS, init_args: {NAME: VALUE}} of one with
    settings, a YAML file with the same, the directory of a reward model, or http://HOST/v1#MODEL, an OpenAI-compatible
    endpoint that compares pairs; several sources separated by commas are one per seed; a WeightedSum is followed by its
    parts; the first judge decides the headline; by default sandbox where data/sandbox.json exists beside the baseline's
    run, and reward/model where that exists; with neither there is no judge, and no win-rates"""
    best_of: tuple[str, ...] = setting((), metavar="NAME=MODEL:N:JUDGE")
    """Further models that are the best of N: of N responses of the model MODEL the one that the judge JUDGE, a name of
    --judge, scores highest, as in best4=sft:4:reward"""
    keep_unfinished: bool = False
    """--best_of may choose truncated responses too, not only where all N are"""
    texts: tuple[str, ...] = setting((), metavar="FILE")
    """Ordinary documents, JSONL of {'text': ...} or .txt, whose bits per byte show what alignment cost"""
    eval: tuple[str, ...] = setting((), metavar="TASK")
    """Tasks, as in `align eval --tasks`, whose change from the baseline shows what alignment cost"""
    eval_limit: int | None = None
    """Items of each of these tasks, from the first; null: all"""
    harness: HarnessFlags = HarnessFlags()
    """How the harness presents its tasks"""
    metric: tuple[str, ...] = setting((), metavar="CLASS")
    """Class paths of further comparison metrics, or of tuples of them"""
    n: int = 4
    """Responses per prompt"""
    seed: int = 0
    """Seed of the responses, the same for every model"""
    temperature: float = 1.0
    """Divides the logits; above 0"""
    max_new_tokens: int = 128
    """Longest response, tokens"""
    batch_size: int = 128
    """Responses sampled at a time"""
    frontier_n: int = 1
    """Responses of each checkpoint to each prompt; 0: no frontier"""
    device: DeviceSettings = DeviceSettings()
    """Device of the networks"""
    engine: EngineFlag = EngineFlag()
    """What samples"""
    json: bool = False
    """Print the content of report.json on stdout"""

    def __post_init__(self) -> None:
        """Reject invalid settings; those of sampling are ResponseConfig's to check."""
        require_at_least(self, limit=1, frontier_n=0, eval_limit=1)
        self.harness.check("--eval", self.eval)


def main(args: list[str]) -> int:
    """Compare and write the report.

    Args:
        args: the command line after ``align compare``.

    Returns:
        int: 0.
    """
    options = parse_settings(CompareSettings, "compare", args)
    task = _task(options)
    from align.compare.comparison import compare
    from align.compare.html import write_html
    from align.compare.markdown import to_markdown
    from align.io.manifest import running_versions

    out = Path(options.out)
    report, rows = compare(task, out / "cache", progress_bar)
    report |= {"abilities": _abilities(options, task, out / "cache")}
    report = {"command": ["align", "compare", *args], "versions": running_versions(), **report}
    _write(out, "report.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    _write(out, "samples.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    _write(out, "report.md", to_markdown(report, rows))
    _write(out, "report.html", write_html(report, rows))
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        _show(report, out)
    return 0


def _task(options: CompareSettings) -> "Task":
    """The comparison that the command line describes."""
    from align.compare.candidates import Candidate, Run
    from align.compare.comparison import Task
    from align.compare.metrics import DEFAULT_METRICS, load_metrics
    from align.compare.respond import ResponseConfig
    from align.rewards.functions import columns_read

    models = named_models(options.models, several=True)
    candidates = [Candidate(name, tuple(Run.of(path) for path in paths)) for name, paths in models.items()]
    candidates += [_best_of(word, candidates, options) for word in options.best_of]
    beside = candidates[0].runs[0].model.parent.parent
    file = _prompts_file(options.prompts, beside)
    names = ("n", "seed", "temperature", "max_new_tokens", "batch_size")
    device = str(network_device(options.device.device))
    engine = options.engine.load()
    try:
        judges = _judges(options.judge, beside)
        judges += [part for judge in judges if not judge.compares for part in judge.parts()]
        metrics = [*DEFAULT_METRICS, *(metric for path in options.metric for metric in load_metrics(path))]
        scored = columns_read(source for judge in judges if not judge.compares for source in judge.sources)
        read = sorted({*scored, *(name for metric in metrics for name in metric.columns)})
        prompts, columns = read_records(file, limit=options.limit, format=options.prompt_format, columns=read)
        return Task(
            candidates=candidates,
            prompts=prompts,
            columns=columns,
            judges=judges,
            config=ResponseConfig(**{name: getattr(options, name) for name in names}, device=device, engine=engine),
            frontier_n=options.frontier_n,
            metrics=metrics,
            texts=read_texts(options.texts),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _abilities(options: CompareSettings, task: "Task", folder: Path) -> list[dict[str, Any]]:
    """The rows of the table of abilities; none without ``--eval``."""
    if not options.eval:
        return []
    from align.compare.abilities import abilities
    from align.evaluate.task import Subject

    run, config = options.harness.load("--eval"), task.config
    results = {
        candidate.name: [
            [
                result
                for results, _ in run(
                    Subject(of.model, config.device, config.seed, config.batch_size, folder),
                    options.eval,
                    options.eval_limit,
                )
                for result in results
            ]
            for of in candidate.runs
        ]
        for candidate in task.candidates
        if candidate.best_of is None
    }
    return abilities(results)


def _best_of(word: str, candidates: Sequence["Candidate"], options: CompareSettings) -> "Candidate":
    """The candidate that a word of ``--best_of`` describes."""
    from align.compare.best_of import BestOf
    from align.compare.candidates import Candidate

    match = re.fullmatch(r"([^=]+)=([^:]+):(\d+):(.+)", word)
    if match is None:
        raise UsageError(f"--best_of {word}: give NAME=MODEL:N:JUDGE, such as best4=sft:4:reward")
    name, model, n, judge = match.groups()
    runs = {candidate.name: candidate.runs for candidate in candidates}
    if model not in runs:
        raise UsageError(f"--best_of {word}: no model is called {model!r}; the models are {', '.join(runs)}")
    try:
        rule = BestOf(model=model, n=int(n), judge=judge, keep_unfinished=options.keep_unfinished)
    except ValueError as error:
        raise UsageError(f"--best_of {word}: {error}") from error
    return Candidate(name, runs[model], rule)


def _prompts_file(given: str | None, beside: Path) -> str:
    default = beside / "data" / "prompts_test.jsonl"
    if given is None and not default.is_file():
        raise UsageError(f"--prompts is missing, and its default {default} does not exist")
    return given or str(default)


def _judges(given: tuple[str, ...], beside: Path) -> list["Judge"]:
    from align.compare.judges import Judge
    from align.rewards.functions import is_mapping, load_reward

    if given:
        judges = []
        for text in given:
            name, equals, source = text.partition("=")
            if not equals or "/" in name or is_mapping(text):
                name, source = text, text
            if is_mapping(source):
                judges.append(Judge(load_reward(source).name if name == source else name, (source,)))
            else:
                judges.append(Judge(name, tuple(source.split(","))))
        return judges
    found = []
    if (beside / "data" / "sandbox.json").is_file():
        found.append(Judge("gold", ("sandbox",)))
    if (beside / "reward" / "model" / "config.json").is_file():
        found.append(Judge("reward", (str(beside / "reward" / "model"),)))
    if not found:
        print(
            "no judge, so the report has KL, lengths, further metrics and responses but no win-rates; --judge takes "
            "sandbox, constraints, module:function, the class path of a Reward, the directory of a reward model or "
            "http://HOST/v1#MODEL",
            file=sys.stderr,
            flush=True,
        )
    return found


def _write(out: Path, name: str, text: str) -> None:
    with replacing_file(out / name) as file:
        file.write(text)


def _show(report: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from align.compare.markdown import abilities_table, models_table, pairs_table, texts_table

    console = Console(width=None if sys.stdout.isatty() else 160)
    tables = [("Models", models_table(report))]
    if report["judges"]:
        tables.append(("Pairs", pairs_table(report)))
    if report["texts"]:
        tables.append(("What alignment cost", texts_table(report)))
    if report["abilities"]:
        tables.append(("Abilities", abilities_table(report)))
    for title, (head, rows) in tables:
        shown = Table(title=title, title_justify="left")
        for name in head:
            shown.add_column(name)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    print(f"report: {out / 'report.html'}")

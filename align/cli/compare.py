"""``align compare``: several models on the same prompts, with paired statistics and a report."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from align.cli.device import add_device_argument, network_device
from align.cli.errors import UsageError
from align.cli.model_path import named_models
from align.cli.parsing import make_parser, parse
from align.cli.sampling import read_prompts
from align.io.atomic import replacing_file
from align.progress import progress_bar

if TYPE_CHECKING:
    from align.compare.comparison import Task
    from align.compare.judges import Judge


def main(args: list[str]) -> int:
    """Compare and write the report.

    Args:
        args: the command line after ``align compare``.

    Returns:
        int: 0.
    """
    options = parse(_parser(), args)
    task = _task(options)
    from align.compare.comparison import compare
    from align.compare.html import write_html
    from align.compare.markdown import to_markdown
    from align.io.manifest import running_versions

    out = Path(options.out)
    report, rows = compare(task, out / "cache", progress_bar)
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


def _parser() -> jsonargparse.ArgumentParser:
    parser = make_parser(
        "compare",
        "Sample responses of several models to the same prompts from the same seeds, score them, and report which "
        "model wins, by how much and with what confidence, how far each is from the baseline, and what it cost.",
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="[NAME=]PATH[,PATH...]",
        help="a stage's folder, a model directory or a Hub id; several paths are several seeds of one model; the first "
        "model is the baseline (default name: the folder's)",
    )
    parser.add_argument("--out", required=True, help="folder of the report")
    parser.add_argument(
        "--prompts",
        help="JSONL file of {'prompt': text or messages} (default: data/prompts_test.jsonl beside the baseline's run)",
    )
    parser.add_argument("--limit", type=int, default=200, help="read at most this many prompts")
    parser.add_argument(
        "--judge",
        nargs="+",
        metavar="[NAME=]JUDGE",
        help="what scores the responses: sandbox, module:function (prompts, responses) -> scores, the class path of a "
        "Reward, a reward-model directory, or http://HOST/v1#MODEL for an OpenAI-compatible endpoint that compares "
        "pairs; several sources, separated by commas, are one per seed; the first judge decides the headline (default: "
        "of the folder of the baseline's run, sandbox if it has data/sandbox.json, and reward/model)",
    )
    parser.add_argument(
        "--metric", nargs="+", default=[], metavar="CLASS", help="class paths of further comparison metrics"
    )
    parser.add_argument("--n", type=int, default=4, help="responses to each prompt")
    parser.add_argument("--seed", type=int, default=0, help="seed of the responses, the same for every model")
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits; above 0")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="longest response, tokens")
    parser.add_argument("--batch_size", type=int, default=128, help="responses sampled at once")
    parser.add_argument(
        "--frontier_n", type=int, default=1, help="responses of each checkpoint to each prompt; 0: no frontier"
    )
    add_device_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the content of report.json on stdout")
    return parser


def _task(options: jsonargparse.Namespace) -> "Task":
    """The comparison that the command line describes; its mistakes are usage errors."""
    from align.compare.candidates import Candidate, Run
    from align.compare.comparison import Task
    from align.compare.metrics import DEFAULT_METRICS, load_metric
    from align.compare.responses import ResponseConfig

    models = named_models(options.models, several=True)
    candidates = [Candidate(name, tuple(Run.of(path) for path in paths)) for name, paths in models.items()]
    beside = candidates[0].runs[0].model.parent.parent
    file = _prompts_file(options.prompts, beside)
    names = ("n", "seed", "temperature", "max_new_tokens", "batch_size")
    if options.limit < 1:
        raise UsageError(f"--limit is {options.limit}: it must be at least 1")
    device = str(network_device(options.device))
    try:
        return Task(
            candidates=candidates,
            prompts=read_prompts(file, limit=options.limit),
            judges=_judges(options.judge, beside),
            config=ResponseConfig(**{name: getattr(options, name) for name in names}, device=device),
            frontier_n=options.frontier_n,
            metrics=[*DEFAULT_METRICS, *map(load_metric, options.metric)],
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _prompts_file(given: str | None, beside: Path) -> Path:
    file = Path(given) if given else beside / "data" / "prompts_test.jsonl"
    if given is None and not file.is_file():
        raise UsageError(f"--prompts is missing, and the default, {file}, does not exist")
    return file


def _judges(given: list[str] | None, beside: Path) -> list["Judge"]:
    from align.compare.judges import Judge

    if given:
        judges = []
        for text in given:
            name, equals, source = text.partition("=")
            if not equals or "/" in name:
                name, source = text, text
            judges.append(Judge(name, tuple(source.split(","))))
        return judges
    found = []
    if (beside / "data" / "sandbox.json").is_file():
        found.append(Judge("gold", ("sandbox",)))
    if (beside / "reward" / "model" / "config.json").is_file():
        found.append(Judge("reward", (str(beside / "reward" / "model"),)))
    if not found:
        raise UsageError(f"--judge is missing, and {beside} has neither data/sandbox.json nor reward/model")
    return found


def _write(out: Path, name: str, text: str) -> None:
    with replacing_file(out / name) as file:
        file.write(text)


def _show(report: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from align.compare.markdown import models_table, pairs_table

    console = Console(width=None if sys.stdout.isatty() else 160)
    for title, (head, rows) in (("Models", models_table(report)), ("Pairs", pairs_table(report))):
        shown = Table(title=title, title_justify="left")
        for name in head:
            shown.add_column(name)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    print(f"report: {out / 'report.html'}")

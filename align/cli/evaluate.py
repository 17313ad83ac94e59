"""``align eval``: what a model can do, by lm-evaluation-harness's tasks and on texts."""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.cli.device import DeviceSettings, network_device
from align.cli.harness import HarnessFlags
from align.cli.model_path import named_models
from align.cli.prompt_file import read_records
from align.cli.settings import parse_settings, require_at_least, setting
from align.cli.text_files import read_problems, read_ranked_pairs, read_texts
from align.generation.sampling_config import SamplingConfig
from align.io.atomic import replacing_file

if TYPE_CHECKING:
    from align.evaluate.result import Difference, Result
    from align.evaluate.task import EvalTask, Subject


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Evaluate a model, or several on the same items with paired differences.

    Tasks are those of lm-evaluation-harness; results have its JSON schema.

    Raises:
        ValueError: a setting is invalid.
    """

    models: tuple[str, ...] = setting(positional=True, metavar="[NAME=]PATH")
    """Folder of a stage, model directory, GGUF file or Hub id; the first one is the baseline of the differences; the
    default name is the folder's"""
    tasks: tuple[str, ...] = ()
    """Names of lm-evaluation-harness's tasks and groups (mmlu, hellaswag, winogrande, gsm8k, ifeval ...), arc or
    truthfulqa for both tasks of that name, humaneval or mbpp"""
    texts: tuple[str, ...] = setting((), metavar="FILE")
    """Documents, JSONL of {'text': ...} or .txt: bits per byte and perplexity"""
    stride: int | None = None
    """Tokens of --texts that a window counts after the context it reads; null: the context"""
    prompts: str | None = setting(None, metavar="FILE")
    """Prompts, and the columns that --judge reads: mean score of the responses"""
    judge: str | None = None
    """Reward that scores the responses to --prompts: constraints_strict, exact_answer, module:function, class path of a
    Reward, {class_path: CLASS, init_args: {NAME: VALUE}} of one with settings, directory of a reward model
    (docs/extend/add_a_reward.md)"""
    programs: str | None = setting(None, metavar="FILE")
    """Programs to write, in the format of HumanEval or MBPP: pass@k of programs that are run against their tests"""
    pairs: str | None = setting(None, metavar="FILE")
    """Pairs {'prompt', 'chosen', 'rejected'}, a category in 'subset' as in RewardBench: accuracy of a reward model"""
    n: int = 1
    """Responses to each prompt of --prompts, and programs for each problem"""
    temperature: float = 0.0
    """Of those responses; 0: greedy"""
    max_new_tokens: int = 512
    """Longest of those responses, tokens"""
    limit: int | None = None
    """Items of each task, from the first; null: all"""
    batch_size: int = 64
    """Responses sampled at a time"""
    seed: int = 0
    """Seed of responses, in tasks that set a temperature"""
    out: str | None = None
    """Folder of results.json, the items and the logs from which an interrupted evaluation resumes; null: the results
    are only shown"""
    harness: HarnessFlags = HarnessFlags()
    """How the harness presents its tasks"""
    device: DeviceSettings = DeviceSettings()
    """Device of the networks"""
    json: bool = False
    """Print the content of results.json on stdout"""

    @property
    def sampling(self) -> SamplingConfig:
        """How responses and programs are sampled."""
        return SamplingConfig(temperature=self.temperature, max_new_tokens=self.max_new_tokens)

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        require_at_least(self, limit=1, batch_size=1, stride=1, n=1)
        if not any((self.tasks, self.texts, self.prompts, self.programs, self.pairs)):
            raise ValueError("nothing to evaluate; give --tasks, --texts, --prompts, --programs or --pairs")
        if (self.prompts is None) != (self.judge is None):
            raise ValueError("--prompts and --judge belong together; give both")
        if self.programs is not None and not self.harness.allow_code_execution:
            raise ValueError("--programs runs programs that a model wrote; add --allow_code_execution to allow it")
        self.harness.check("--tasks", self.tasks)
        if self.n > 1 and not self.temperature:
            raise ValueError(f"n is {self.n} and temperature 0, which gives equal responses; set a temperature")


def main(args: list[str]) -> int:
    """Evaluate and write the results.

    Args:
        args: the command line after ``align eval``.

    Returns:
        int: 0.
    """
    options = parse_settings(EvalSettings, "eval", args)
    from align.evaluate.result import differences
    from align.evaluate.task import Subject
    from align.io.manifest import running_versions

    models = {name: directory for name, (directory,) in named_models(options.models).items()}
    own = _own_tasks(options)
    device = str(network_device(options.device.device))
    found: dict[str, list[Result]] = {}
    reports: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(options.out or scratch)
        for name, directory in models.items():
            subject = Subject(directory, device, options.seed, options.batch_size, out / "cache")
            found[name], reports[name] = _evaluate(subject, own, options)
            reports[name] |= {"command": ["align", "eval", *args], "align_versions": running_versions()}
            _write(out / name, found[name], reports[name])
        baseline, *others = found
        gaps = {name: differences(found[name], found[baseline]) for name in others}
        whole = {"baseline": baseline, "models": reports, "differences": _plain_differences(gaps)}
        if others:
            _write_json(out / "differences.json", {"baseline": baseline, "differences": whole["differences"]})
    if options.json:
        print(json.dumps(whole, ensure_ascii=False, default=_plain))
    else:
        _show(found, gaps, baseline)
        if options.out:
            print("results: " + ", ".join(str(Path(options.out) / name / "results.json") for name in found))
    return 0


def _own_tasks(options: EvalSettings) -> list["EvalTask"]:
    """The tasks that the harness does not have."""
    from align.evaluate.perplexity import Perplexity
    from align.evaluate.programs import Programs
    from align.evaluate.reward_pairs import RewardPairs
    from align.evaluate.scored import Scored
    from align.rewards.functions import columns_read, load_reward

    tasks: list[EvalTask] = []
    if options.texts:
        tasks.append(Perplexity(tuple(read_texts(options.texts)), options.stride))
    if options.prompts is not None and options.judge is not None:
        columns = columns_read([options.judge])
        prompts, records = read_records(options.prompts, limit=options.limit, columns=columns)
        judge = load_reward(options.judge, device=network_device(options.device.device))
        tasks.append(Scored(prompts, records, judge, n=options.n, sampling=options.sampling))
    if options.programs is not None:
        tasks.append(Programs(read_problems(options.programs), n=options.n, sampling=options.sampling))
    if options.pairs is not None:
        tasks.append(RewardPairs(read_ranked_pairs(options.pairs, limit=options.limit)))
    return tasks


def _evaluate(
    subject: "Subject", own: Sequence["EvalTask"], options: EvalSettings
) -> tuple[list["Result"], dict[str, Any]]:
    """Results of a model, and the same in the harness's schema."""
    results, report = [], _empty_report(subject, options)
    for task in own:
        result = task.run(subject, limit=options.limit)
        results.append(result)
        _add(report, result)
    if options.tasks:
        run = options.harness.load("--tasks", n=options.n, sampling=options.sampling)
        for some, raw in run(subject, options.tasks, options.limit):
            results += some
            for result in some if not raw else ():
                _add(report, result)
            for key, value in raw.items():
                if isinstance(value, dict) and key != "samples":
                    report.setdefault(key, {}).update(value)
                elif key not in ("samples", "total_evaluation_time_seconds"):
                    report.setdefault(key, value)
    return results, report


def _empty_report(subject: "Subject", options: EvalSettings) -> dict[str, Any]:
    return {
        "results": {},
        "configs": {},
        "higher_is_better": {},
        "n-samples": {},
        "config": {
            "model": "align",
            "model_args": {"path": str(subject.directory), "fingerprint": subject.fingerprint},
            "batch_size": options.batch_size,
            "device": subject.device,
            "limit": options.limit,
        },
    }


def _add(report: dict[str, Any], result: "Result") -> None:
    """Enter a result of align's own into a report in the harness's schema."""
    numbers: dict[str, Any] = {"alias": result.task}
    for measure in result.measures:
        metric, _, chosen = measure.name.partition(",")
        numbers[measure.name] = measure.value
        numbers[f"{metric}_stderr,{chosen}"] = "N/A" if measure.stderr is None else measure.stderr
    report["results"][result.task] = numbers
    report["configs"][result.task] = dict(result.settings)
    report["higher_is_better"][result.task] = {
        measure.name.partition(",")[0]: measure.higher_is_better for measure in result.measures
    }
    report["n-samples"][result.task] = {"original": len(result.items), "effective": len(result.items)}


def _write(folder: Path, results: Sequence["Result"], report: dict[str, Any]) -> None:
    """The results of a model, and the items of every task."""
    _write_json(folder / "results.json", report)
    for result in results:
        if result.items:
            with replacing_file(folder / f"samples_{result.task}.jsonl") as file:
                for item in result.items:
                    file.write(json.dumps(item, ensure_ascii=False, default=_plain) + "\n")


def _write_json(path: Path, content: Any) -> None:
    with replacing_file(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """A JSON value of what the harness leaves in its results: NumPy's numbers, sets, functions of task files."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return sorted(value, key=str) if isinstance(value, set) else str(value)


def _plain_differences(gaps: dict[str, list["Difference"]]) -> dict[str, Any]:
    return {name: [gap._asdict() | {"gap": gap.gap._asdict()} for gap in some] for name, some in gaps.items()}


def _show(found: dict[str, list["Result"]], gaps: dict[str, list["Difference"]], baseline: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(title="Results, with 95% intervals over items", title_justify="left")
    for column in ("task", "measure", *found):
        table.add_column(column)
    rows = [(result.task, measure.name) for some in found.values() for result in some for measure in result.measures]
    for task, name in dict.fromkeys(rows):
        table.add_row(task, name.removesuffix(",none"), *(_cell(results, task, name) for results in found.values()))
    console.print(table)
    if gaps:
        table = Table(title=f"Differences to {baseline}, paired over items", title_justify="left")
        for column in ("task", "measure", "model", "difference [95%]", "better"):
            table.add_column(column)
        for name, some in gaps.items():
            for gap in some:
                better = "not shown" if gap.better is None else (name, baseline)[gap.better]
                shown = f"{gap.gap.mean:+.4f} [{gap.gap.low:+.4f}, {gap.gap.high:+.4f}]"
                table.add_row(gap.task, gap.measure.removesuffix(",none"), name, shown, better)
        console.print(table)


def _cell(results: Sequence["Result"], task: str, name: str) -> str:
    for result in results:
        for measure in result.measures:
            if (result.task, measure.name) == (task, name):
                estimate = measure.estimate()
                if estimate is None:
                    tail = "" if measure.stderr is None else f" +- {1.96 * measure.stderr:.4f}"
                    return f"{measure.value:.4f}{tail}"
                return f"{estimate.mean:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"
    return "-"

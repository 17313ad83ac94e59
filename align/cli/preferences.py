"""``align preferences``: a model's own responses, scored by a reward, as preference pairs or as the best of N."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.cli.device import DeviceSettings, network_device
from align.cli.engine import EngineFlag
from align.cli.errors import UsageError
from align.cli.model_path import model_directory
from align.cli.origin import judge_facts, model_facts
from align.cli.prompt_file import read_records
from align.cli.settings import parse_settings, require_at_least, setting
from align.generation.sampling_config import SamplingConfig
from align.io.atomic import replacing_file
from align.io.log import Log, differences
from align.io.progress import progress_bar
from align.rewards.functions import columns_read
from align.rewards.labelling import LabelConfig, ScoredResponse, Tally, best_response, label_pairs
from align.rewards.weighted_sum import scores_of
from align.tokenizer.prompts import Columns, Prompt, as_messages, encode_prompt

if TYPE_CHECKING:
    import torch

    from align.engines import OpenEngine
    from align.model.gpt import GPT
    from align.rewards.reward import Reward
    from align.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class PreferencesSettings:
    """Sample several responses to each prompt, score them with a reward, and write preference pairs.

    Labels follow a Bradley-Terry model or are flipped at a constant rate. With --best_of, write the best
    response to each prompt as SFT data instead.

    Raises:
        ValueError: a setting is invalid.
    """

    model: str = setting(positional=True)
    """Model directory, Hugging Face directory, GGUF file or Hub id of a chat model"""
    prompts: str
    """JSONL file of {'prompt': text or messages}"""
    judge: str
    """Reward that scores the responses: sandbox, constraints, constraints_strict, exact_answer, module:function
    (prompts, responses) -> scores, the class path of a Reward, {class_path: CLASS, init_args: {NAME: VALUE}} of one
    with settings, a YAML file with the same, or the directory of a reward model"""
    out: str
    """JSONL file to write; OUT.meta.json beside it records where the data comes from"""
    n: int = 4
    """Responses per prompt"""
    best_of: bool = False
    """Write the best of N as chats for SFT instead of pairs"""
    labels: LabelConfig = LabelConfig()
    """Which responses are compared, and how noisy the labels are"""
    skip: int = 0
    """Number of prompts to skip at the start of the file"""
    limit: int | None = None
    """Number of prompts to read after those; null: all"""
    seed: int = 0
    """Seed of responses, choice of pairs and labels"""
    batch_size: int = 256
    """Responses sampled at a time"""
    sampling: SamplingConfig = SamplingConfig()
    """How tokens are drawn"""
    device: DeviceSettings = DeviceSettings()
    """Device of the networks"""
    engine: EngineFlag = EngineFlag()
    """What samples"""
    json: bool = False
    """Print the summary (as in OUT.meta.json) as one JSON object"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        require_at_least(self, n=1 if self.best_of else 2, batch_size=1, skip=0, limit=1)


def main(args: list[str]) -> int:
    """Sample, score, label and write.

    1. sample N responses to each prompt and score them, a batch at a time, into a log that survives a kill;
    2. label pairs (or pick the best) from the whole log;
    3. move the output and its ``.meta.json`` into place, and delete the log.

    Args:
        args: the command line after ``align preferences``.

    Returns:
        int: 0.
    """
    from align.data.readers import find_sources

    options = parse_settings(PreferencesSettings, "preferences", args)
    if Path(options.out).is_dir():
        raise UsageError(f"--out {options.out} is a folder; name a file")
    options = replace(options, model=str(model_directory(options.model)))
    device = network_device(options.device.device)
    read = columns_read([options.judge])
    sources = [source.pinned() for source in find_sources(options.prompts)]
    prompts, columns = read_records(
        options.prompts, skip=options.skip, limit=options.limit, columns=read, sources=sources
    )
    origin = _origin(options, device, [source.fingerprint() for source in sources])
    out = Path(options.out)
    partial = out.with_name(f".{out.name}.partial")
    if changes := differences(partial, origin):
        print(f"starting over, {partial} was sampled with other settings: {changes}", file=sys.stderr)
    log = Log(partial, origin=origin)
    if log:
        print(f"resuming after the {len(log)} prompts in {log.file}", file=sys.stderr)
    if len(log) < len(prompts):
        _sample(options, device, prompts, columns, log)
    summary = _write(out, prompts, columns, log, options, origin)
    log.remove()
    if options.json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        _show(out, summary, best_of=options.best_of)
    return 0


def _origin(options: PreferencesSettings, device: "torch.device", prompts: Sequence[str]) -> dict[str, Any]:
    """Everything that responses and scores depend on."""
    # Logits depend, by rounding, on the shape of the batch and on the device.
    names = ("n", "seed", "batch_size")
    sampling = asdict(options.sampling) | {name: getattr(options, name) for name in names}
    sampling |= {"device": device.type, **options.engine.load().identity}
    return {
        "model": {"directory": options.model, **model_facts(options.model)},
        "judge": judge_facts(options.judge),
        "prompts": {"file": options.prompts, "content": list(prompts), "skip": options.skip, "limit": options.limit},
        "sampling": sampling,
    }


def _sample(
    options: PreferencesSettings,
    device: "torch.device",
    prompts: Sequence[Prompt],
    columns: Sequence[Columns],
    log: Log,
) -> None:
    """Append scored responses to the prompts that the log does not have yet."""
    from align.io.directory import load_network
    from align.rewards.functions import load_reward
    from align.tokenizer import Tokenizer

    judge = load_reward(options.judge, device=device)
    tokenizer = Tokenizer.load(options.model)
    if tokenizer.spec.chat_template is None:
        raise ValueError(f"{options.model} has no chat template; preferences compare the responses of a chat model")
    network = load_network(options.model).eval().to(device)
    group = max(1, options.batch_size // options.n)
    bar = progress_bar("prompts", len(prompts))
    with options.engine.load().open(tokenizer) as engine, bar as advance:
        advance(len(log))
        while (done := len(log)) < len(prompts):
            batch, records = prompts[done : done + group], columns[done : done + group]
            first = options.skip + done
            log.append(_scored(network, tokenizer, engine, batch, records, judge, options, first=first))
            advance(len(batch))


def _scored(
    network: "GPT",
    tokenizer: "Tokenizer",
    engine: "OpenEngine",
    prompts: Sequence[Prompt],
    columns: Sequence[Columns],
    judge: "Reward",
    options: PreferencesSettings,
    *,
    first: int,
) -> list[list[ScoredResponse]]:
    """Scored responses to each prompt; none to a prompt that leaves no room for one."""
    from align.engines import Asked, Weights
    from align.generation.sampling import response_seed

    ids = [encode_prompt(tokenizer, prompt, chat=True) for prompt in prompts]
    rows = [
        (number, sample)
        for number in range(len(prompts))
        if len(ids[number]) < network.config.context
        for sample in range(options.n)
    ]
    found: list[list[ScoredResponse]] = [[] for _ in prompts]
    if not rows:
        return found
    seeds = [response_seed(options.seed, first + number, sample) for number, sample in rows]
    responses = Asked([ids[number] for number, _ in rows], options.sampling, seeds)
    sampled = engine.sample(Weights(network, ""), responses)
    asked, records = [prompts[number] for number, _ in rows], [columns[number] for number, _ in rows]
    scores, parts = scores_of(judge, asked, sampled.texts, records)
    for row, ((number, _), record, score) in enumerate(zip(rows, sampled.records(), scores, strict=True)):
        found[number].append(
            ScoredResponse(**record, score=score, parts={name: values[row] for name, values in parts.items()})
        )
    return found


def _write(
    out: Path,
    prompts: Sequence[Prompt],
    columns: Sequence[Columns],
    log: Log,
    options: PreferencesSettings,
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Write the records, with the columns that the judge read, and the sidecar file; returns the summary."""
    config, tally = options.labels, Tally()
    with replacing_file(out) as file:
        for number, (prompt, kept, row) in enumerate(zip(prompts, columns, log, strict=True), options.skip):
            responses = [ScoredResponse(*fields) for fields in row]
            for record in _records(number, as_messages(prompt), responses, config, tally, best_of=options.best_of):
                file.write(json.dumps({**kept, **record}, ensure_ascii=False) + "\n")
        if not tally.records:
            what = "a usable response" if options.best_of else "two responses that differ"
            counts = ", ".join(f"{name} {count}" for name, count in vars(tally).items() if count and "sum" not in name)
            raise ValueError(f"nothing to write: no prompt got {what} ({counts}); {log.file} keeps the responses")
        used = {"keep_unfinished", "least_score"} if options.best_of else asdict(config).keys() - {"least_score"}
        labels = {name: value for name, value in asdict(config).items() if name in used}
        summary = {
            "what": "best of n" if options.best_of else "preference pairs",
            **origin,
            "labels": labels,
            **tally.summary(best_of=options.best_of),
        }
        with replacing_file(out.with_name(f"{out.name}.meta.json")) as meta:
            meta.write(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def _records(
    number: int,
    prompt: Sequence[Mapping[str, str]],
    responses: Sequence[ScoredResponse],
    config: LabelConfig,
    tally: Tally,
    *,
    best_of: bool,
) -> Iterator[dict[str, Any]]:
    if best_of:
        best = best_response(responses, config, tally)
        if best is not None:
            yield {"messages": [*prompt, _turn(best)], "score": best.score}
        return
    for chosen, rejected in label_pairs(number, responses, config, tally):
        yield {
            "prompt": prompt,
            "chosen": [_turn(chosen)],
            "rejected": [_turn(rejected)],
            "score_chosen": chosen.score,
            "score_rejected": rejected.score,
        }


def _turn(response: ScoredResponse) -> dict[str, str]:
    return {"role": "assistant", "content": response.text}


def _show(out: Path, summary: dict[str, Any], *, best_of: bool) -> None:
    counts, scores = summary["counts"], summary["mean_score"]
    sampled = f"{counts['responses']} responses to {counts['prompts']} prompts"
    print(f"{out}: {counts['records']} {summary['what']} from {sampled}")
    skipped = {name: counts[name] for name in counts if name.startswith("prompts_") and counts[name]}
    if skipped:
        print(
            "prompts skipped: " + ", ".join(f"{count} {name[8:].replace('_', ' ')}" for name, count in skipped.items())
        )
    left = {name: counts[name] for name in counts if name.startswith("responses_") and counts[name]}
    if left:
        print("responses: " + ", ".join(f"{count} {name[10:]}" for name, count in left.items()))
    print("mean score: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    if not best_of:
        agreement = summary["label_agreement"]
        share = "" if agreement is None else f"{agreement:.1%} of the untied labels follow the judge's order; "
        print(f"{share}{counts['ties']} ties")

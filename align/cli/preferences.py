"""``align preferences``: a model's own answers, compared by a judge, as preference data or as the best of N."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from align.cli.device import add_device_argument, network_device
from align.cli.errors import UsageError
from align.cli.parsing import make_parser, parse
from align.cli.sampling import add_sampling_arguments, read_prompts, sampling_config
from align.io.atomic import replacing_file
from align.io.log import Log
from align.progress import progress_bar
from align.rewards.labelling import LabelConfig, ScoredResponse, Tally, best_response, label_pairs
from align.tokenizer.prompts import Prompt, as_messages, encode_prompt

if TYPE_CHECKING:
    from align.generation.sampling_config import SamplingConfig
    from align.model.gpt import GPT
    from align.rewards.base import Reward
    from align.tokenizer import Tokenizer


def main(args: list[str]) -> int:
    """Sample, score, label and write.

    1. sample N answers to each prompt and score them, a batch at a time, into a log that outlives a kill;
    2. label pairs (or pick the best) from the whole log;
    3. move the output and its ``.meta.json`` into place, and drop the log.

    Args:
        args: the command line after ``align preferences``.

    Returns:
        int: 0.
    """
    options = parse(_parser(), args)
    _check(options)
    options.device = network_device(options.device)
    config = LabelConfig(
        label_temperature=options.label_temperature,
        pairs_per_prompt=options.pairs_per_prompt,
        keep_unfinished=options.keep_unfinished,
        seed=options.seed,
    )
    prompts = read_prompts(options.prompts, skip=options.skip, limit=options.limit)
    origin = _origin(options)
    out = Path(options.out)
    log = Log(out.with_name(f".{out.name}.partial"), origin=origin)
    if log:
        print(f"going on after the {len(log)} prompts that {log.file} holds", file=sys.stderr)
    if len(log) < len(prompts):
        _sample(options, prompts, log)
    summary = _write(out, prompts, log, config, options, origin)
    log.remove()
    if options.json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        _show(out, summary, best_of=options.best_of)
    return 0


def _parser() -> jsonargparse.ArgumentParser:
    parser = make_parser(
        "preferences",
        "Sample several answers to each prompt, score them with a judge, and write preference pairs labelled by a "
        "Bradley-Terry coin, or with --best_of the best answer to each prompt as SFT data.",
    )
    parser.add_argument("model", help="model directory, Hugging Face directory or Hub id of a chat model")
    parser.add_argument("--prompts", required=True, help="JSONL file of {'prompt': text or messages}")
    parser.add_argument(
        "--judge",
        required=True,
        help="what scores the answers: sandbox, module:function (prompts, responses) -> scores, or the directory of a "
        "reward model",
    )
    parser.add_argument("--out", required=True, help="JSONL file to write; OUT.meta.json beside it tells where from")
    parser.add_argument("--n", type=int, default=4, help="answers to each prompt")
    parser.add_argument("--best_of", action="store_true", help="write the best of N as chats for SFT, not pairs")
    labels = LabelConfig()
    parser.add_argument(
        "--label_temperature",
        type=float,
        default=labels.label_temperature,
        help="temperature of the coin that labels a pair, P(first chosen) = sigmoid((s1 - s2) / temperature), in units "
        "of the judge's score; 0: the judge's order, ties left out",
    )
    parser.add_argument("--pairs_per_prompt", type=int, default=labels.pairs_per_prompt, help="most pairs of a prompt")
    parser.add_argument("--keep_unfinished", action="store_true", help="use answers that the length cut off too")
    parser.add_argument("--skip", type=int, default=0, help="leave out this many prompts at the start of the file")
    parser.add_argument("--limit", type=int, help="read only this many prompts (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of answers, choice of pairs and labels")
    parser.add_argument("--batch_size", type=int, default=256, help="answers sampled at once")
    add_sampling_arguments(parser)
    add_device_argument(parser)
    parser.add_argument(
        "--json", action="store_true", help="print the summary (as in OUT.meta.json) as one JSON object"
    )
    return parser


def _check(options: jsonargparse.Namespace) -> None:
    least = 1 if options.best_of else 2
    if options.n < least:
        raise UsageError(
            f"--n is {options.n}: it must be at least {least}" + ("" if options.best_of else " for a pair")
        )
    if options.batch_size < 1:
        raise UsageError(f"--batch_size is {options.batch_size}: it must be at least 1")
    if options.skip < 0:
        raise UsageError(f"--skip is {options.skip}: it must be at least 0")
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit is {options.limit}: it must be at least 1")


def _origin(options: jsonargparse.Namespace) -> dict[str, Any]:
    """Everything that answers and scores depend on: no dates, so that the same run gives the same bytes."""
    from align.io.location import locate
    from align.io.manifest import weights_fingerprint
    from align.tokenizer import Tokenizer

    names = ("n", "seed", "batch_size")  # a batch's shape decides the last bit of its logits, and so does the device
    sampling = asdict(sampling_config(options)) | {name: getattr(options, name) for name in names}
    sampling["device"] = options.device.type
    with Path(options.prompts).open("rb") as file:
        prompts = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "model": {
            "directory": options.model,
            "weights": weights_fingerprint(locate(options.model)),
            "tokenizer": Tokenizer.load(options.model).fingerprint,
        },
        "judge": {
            "name": options.judge,
            "weights": weights_fingerprint(options.judge) if Path(options.judge).is_dir() else None,
        },
        "prompts": {"file": options.prompts, "sha256": prompts, "skip": options.skip, "limit": options.limit},
        "sampling": sampling,
    }


def _sample(options: jsonargparse.Namespace, prompts: Sequence[Prompt], log: Log) -> None:
    """Fill the log with scored answers to the prompts it does not have yet."""
    from align.io.directory import load_network
    from align.rewards.functions import load_reward
    from align.tokenizer import Tokenizer

    judge = load_reward(options.judge, device=options.device)
    tokenizer = Tokenizer.load(options.model)
    if tokenizer.spec.chat_template is None:
        raise ValueError(f"{options.model} has no chat template: preferences are between answers of a chat model")
    network = load_network(options.model).eval().to(options.device)
    sampling = sampling_config(options)
    group = max(1, options.batch_size // options.n)
    with progress_bar("prompts", len(prompts)) as advance:
        advance(len(log))
        while (done := len(log)) < len(prompts):
            batch = prompts[done : done + group]
            first = options.skip + done
            log.append(_answers(network, tokenizer, batch, sampling, judge, options, first=first))
            advance(len(batch))


def _answers(
    network: "GPT",
    tokenizer: "Tokenizer",
    prompts: Sequence[Prompt],
    sampling: "SamplingConfig",
    judge: "Reward",
    options: jsonargparse.Namespace,
    *,
    first: int,
) -> list[list[ScoredResponse]]:
    """Scored answers to each prompt, none where a prompt leaves no room for one."""
    from align.generation.responses import sample_responses
    from align.generation.sampling import response_seed

    ids = [encode_prompt(tokenizer, prompt, chat=True) for prompt in prompts]
    rows = [
        (number, answer)
        for number in range(len(prompts))
        if len(ids[number]) < network.config.context
        for answer in range(options.n)
    ]
    found: list[list[ScoredResponse]] = [[] for _ in prompts]
    if not rows:
        return found
    seeds = [response_seed(options.seed, first + number, sample) for number, sample in rows]
    sampled = sample_responses(network, tokenizer, [ids[number] for number, _ in rows], sampling, seeds=seeds)
    scores = judge([prompts[number] for number, _ in rows], sampled.texts)
    for (number, _), record, score in zip(rows, sampled.records(), scores, strict=True):
        found[number].append(ScoredResponse(**record, score=score))
    return found


def _write(
    out: Path,
    prompts: Sequence[Prompt],
    log: Log,
    config: LabelConfig,
    options: jsonargparse.Namespace,
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Write the records and the sidecar; the summary."""
    tally = Tally()
    with replacing_file(out) as file:
        for number, (prompt, row) in enumerate(zip(prompts, log, strict=True), options.skip):
            answers = [ScoredResponse(*fields) for fields in row]
            for record in _records(number, as_messages(prompt), answers, config, tally, best_of=options.best_of):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if not tally.records:
            what = "usable response" if options.best_of else "two responses that differ"
            counts = ", ".join(f"{name} {count}" for name, count in vars(tally).items() if count and "sum" not in name)
            raise ValueError(f"nothing to write: no prompt got {what} ({counts}); {log.file} keeps the answers")
        labels = {"keep_unfinished": config.keep_unfinished} if options.best_of else asdict(config)
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
    answers: Sequence[ScoredResponse],
    config: LabelConfig,
    tally: Tally,
    *,
    best_of: bool,
) -> Iterator[dict[str, Any]]:
    if best_of:
        best = best_response(answers, config, tally)
        if best is not None:
            yield {"messages": [*prompt, _turn(best)], "score": best.score}
        return
    for chosen, rejected in label_pairs(number, answers, config, tally):
        yield {
            "prompt": prompt,
            "chosen": [_turn(chosen)],
            "rejected": [_turn(rejected)],
            "score_chosen": chosen.score,
            "score_rejected": rejected.score,
        }


def _turn(answer: ScoredResponse) -> dict[str, str]:
    return {"role": "assistant", "content": answer.text}


def _show(out: Path, summary: dict[str, Any], *, best_of: bool) -> None:
    counts, scores = summary["counts"], summary["mean_score"]
    print(
        f"{out}: {counts['records']} {summary['what']}, {counts['responses']} responses to {counts['prompts']} prompts"
    )
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
        share = "" if agreement is None else f"{agreement:.1%} of the untied labels are the judge's order; "
        print(f"{share}{counts['ties']} ties")

"""The comparison as Markdown, and its tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from align.compare.candidates import COSTS
from align.compare.wording import KL_NOTES, origin, pair_verdict

_SHOWN_SETTINGS = 60
_SHOWN_SAMPLES = 3


def to_markdown(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole report.

    Args:
        report: the content of report.json.
        rows: lines of samples.jsonl.
    """
    parts = [
        f"# {', '.join(report['models'])}: a comparison",
        f"{report['prompts']} prompts, {report['responses']['n']} responses to each at temperature "
        f"{report['responses']['temperature']:g}, {report['seeds']} seed(s); baseline: {report['baseline']}. "
        "In brackets: 95% intervals.",
        "## Models",
        table(*models_table(report)),
        *(["### Further metrics", table(*further)] if (further := further_table(report))[1] else []),
    ]
    if report["judges"]:
        parts += [
            "## Pairs",
            "Win-rate: the share of pairs of responses to the same prompt in which the first model's is better; ties "
            "count half. At equal length: the same by a regression on the difference in length. Difference: of the "
            "mean scores.",
            table(*pairs_table(report)),
        ]
    if report["texts"]:
        parts += ["## What alignment cost", texts_lede(report), table(*texts_table(report))]
    if report["abilities"]:
        parts += ["## Abilities", abilities_lede(report), table(*abilities_table(report))]
    if any(model["proxies"] for model in report["models"].values()):
        parts += ["## Gains by other judges", table(*_proxy_table(report))]
    if report["frontier"]:
        parts += ["## Reward against KL, every checkpoint", table(*_frontier_table(report))]
    if any(model["cost"] for model in report["models"].values()):
        parts += ["## Cost of each stage", table(*_cost_table(report))]
    if report["settings"]:
        parts += ["## Different settings", table(*_settings_table(report))]
    parts += ["## Samples", *(_sample(row) for row in rows[:_SHOWN_SAMPLES])]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def models_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of models."""
    judges = [
        judge["name"]
        for judge in report["judges"]
        if any(judge["name"] in m["rewards"] for m in report["models"].values())
    ]
    columns = [metric for metric in report["metrics"] if metric["is_column"]]
    chosen = any(model["best_of"] for model in report["models"].values())
    head = ["model", *judges, "KL, nats", *["tokens sampled"] * chosen, *(metric["label"] for metric in columns)]
    rows = []
    for name, model in report["models"].items():
        rows.append(
            [
                f"{name} ({origin(model)})" if model["best_of"] else name,
                *(with_interval(model["rewards"][judge]) for judge in judges),
                _kl(model["kl"]),
                *[f"{model['sampled_tokens']['mean']:.3g}"] * chosen,
                *(_metric(of, model["metrics"][of["name"]]) for of in columns),
            ]
        )
    return head, rows


def _kl(value: Mapping[str, Any]) -> str:
    note = KL_NOTES[value["by"]]
    if value["mean"] is None:
        return note
    return with_interval(value, 1) + (f" ({note})" if note else "")


def texts_lede(report: Mapping[str, Any]) -> str:
    """One sentence on what the table of texts shows."""
    texts = report["texts"]
    return (
        f"Each model's loss on {texts['documents']} ordinary documents ({texts['bytes']:,} bytes), teacher-forced. An "
        f"increase over {report['baseline']} is a cost of training. Perplexities per token compare only between models "
        "of the same tokenizer."
    )


def texts_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of losses on ordinary text."""
    head = ["model", "bits per byte", f"change from {report['baseline']}", "perplexity per token", "verdict"]
    rows = []
    for name, model in report["models"].items():
        if (of := model["texts"]) is not None:
            rows.append(
                [
                    name,
                    with_interval(of["bits_per_byte"], 4),
                    "-" if of["change"] is None else with_interval(of["change"], 4, sign="+"),
                    with_interval(of["perplexity"], 2) + ("" if of["same_tokenizer"] else " (another tokenizer)"),
                    of["verdict"] or "baseline",
                ]
            )
    return head, rows


def abilities_lede(report: Mapping[str, Any]) -> str:
    """One sentence on what the table of abilities shows."""
    return (
        f"Tasks of lm-evaluation-harness; in each cell the value and its change from {report['baseline']}, paired over "
        "items."
    )


def abilities_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of abilities."""
    names = list(report["abilities"][0]["models"])
    rows = []
    for row in report["abilities"]:
        cells = []
        for name in names:
            of = row["models"][name]
            change = "" if of["change"] is None else f"; {with_interval(of['change'], sign='+')} ({of['verdict']})"
            cells.append(with_interval(of["value"]) + change)
        rows.append([row["task"], row["measure"].removesuffix(",none"), f"{row['items']:,}", *cells])
    return ["task", "measure", "items", *names], rows


def further_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the metrics that are no columns of the table of models, without those that measured nothing."""
    models = report["models"].values()
    rows = []
    for metric in report["metrics"]:
        values = [model["metrics"][metric["name"]] for model in models]
        if not metric["is_column"] and any(values):
            rows.append([metric["label"], *(_metric_with_interval(metric, value) for value in values)])
    return ["metric", *report["models"]], rows


def pairs_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of pairs."""
    head = ["judge", "pair", "win-rate", "at equal length", "difference", "verdict"]
    rows = []
    for pair in report["pairs"]:
        low, high = pair["ci95"]
        controlled, difference = pair["length_controlled"], pair["difference"]
        rows.append(
            [
                pair["judge"],
                f"{pair['a']} against {pair['b']}",
                f"{pair['win_rate']:.1%} [{low:.1%}, {high:.1%}]",
                "-" if controlled is None else percent(controlled),
                "-" if difference is None else with_interval(difference),
                pair_verdict(pair),
            ]
        )
    return head, rows


def _metric(metric: Mapping[str, Any], value: Mapping[str, Any] | None) -> str:
    """The mean alone: the table is wide enough."""
    if value is None:
        return "-"
    return f"{value['mean']:.1%}" if metric["is_share"] else f"{value['mean']:.3g}"


def _metric_with_interval(metric: Mapping[str, Any], value: Mapping[str, Any] | None) -> str:
    if value is None or value["ci95"] is None:
        return _metric(metric, value)
    return percent(value) if metric["is_share"] else with_interval(value)


def with_interval(value: Mapping[str, Any], digits: int = 3, *, sign: str = "") -> str:
    """``0.521 [0.514, 0.528]``; ``sign="+"`` writes a plus too."""
    low, high = value["ci95"]
    form = f"{sign}.{digits}f"
    return f"{value['mean']:{form}} [{low:{form}}, {high:{form}}]"


def percent(value: Mapping[str, Any]) -> str:
    """``52.1% [51.4%, 52.8%]``."""
    low, high = value["ci95"]
    return f"{value['mean']:.1%} [{low:.1%}, {high:.1%}]"


def _proxy_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["model", "judge", "its gain, std", "first judge", "its gain, std", "gap", "correlation"]
    rows = [
        [
            name,
            proxy,
            f"{of['gain']:+.2f}",
            of["against"],
            f"{of['gain_against']:+.2f}",
            f"{of['gap']:+.2f}",
            "-" if of["correlation"] is None else f"{of['correlation']:.2f}",
        ]
        for name, model in report["models"].items()
        for proxy, of in model["proxies"].items()
    ]
    return head, rows


def _frontier_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["model", "seed", "checkpoint", "judge", "KL, nats", "reward"]
    rows = [
        [
            point["model"],
            str(point["seed"]),
            point["checkpoint"],
            point["judge"],
            with_interval({"mean": point["kl"], "ci95": point["kl_ci95"]}, 2),
            with_interval({"mean": point["reward"], "ci95": point["ci95"]}),
        ]
        for point in report["frontier"]
    ]
    return head, rows


def _cost_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["model", *COSTS.values()]
    rows = []
    for name, model in report["models"].items():
        if model["best_of"]:
            continue
        of_reward = (model["cost"] or {}).get("reward_model")
        named = [(name, model["cost"])] + [(f"{name}'s reward model", of_reward)] * (of_reward is not None)
        for whose, cost in named:
            values = [None if cost is None else cost[field] for field in COSTS]
            rows.append([whose, *("-" if value is None else f"{value:,.4g}" for value in values)])
    return head, rows


def _settings_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    names = list(report["models"])
    rows = [
        [setting["setting"], *(str(setting["values"].get(name, "")) for name in names)]
        for setting in report["settings"][:_SHOWN_SETTINGS]
    ]
    return ["setting", *names], rows


def _sample(row: Mapping[str, Any]) -> str:
    prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
    lines = [f"> {' '.join(prompt.split())}", ""]
    for name, responses in row["responses"].items():
        scores = ", ".join(f"{judge} {value:.2f}" for judge, value in responses[0]["rewards"].items())
        shown = f" ({scores})" if scores else ""
        lines.append(f"- **{name}**{shown}: {' '.join(responses[0]['text'].split())}")
    return "\n".join(lines)

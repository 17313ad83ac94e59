"""The comparison as one self-contained HTML page, without network, fonts or libraries.

Python prepares the content, ``report.html.jinja`` lays it out, ``report.css`` and ``report.js`` are inlined. The
content security policy allows the page's own script alone and no requests.
"""

import base64
import hashlib
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from align.compare import charts, wording
from align.compare.candidates import COSTS
from align.compare.markdown import abilities_lede, texts_lede
from align.compare.picks import embedded, picks

_HERE = Path(__file__).parent
_FEW = 6
"""Verdicts shown at once; the others are folded"""


def write_html(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The page.

    Args:
        report: the content of report.json.
        rows: lines of samples.jsonl.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    names = list(report["models"])
    environment.globals.update(
        glyph=lambda name: charts.glyph(names.index(name)),
        glyph_of=charts.glyph,
        strip=charts.strip,
        percent=wording.percent,
    )
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    verdicts = wording.verdicts(report)
    return environment.get_template("report.html.jinja").render(
        report=report,
        names=names,
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        verdicts=verdicts[:_FEW],
        more_verdicts=verdicts[_FEW:],
        models=_models_table(report),
        matrices=list(_matrices(report)),
        pairs=_pairs(report),
        frontier=_frontier(report),
        over_optimisation=_over_optimisation(report),
        proxies=_proxies(report),
        texts=_texts(report),
        abilities=_abilities(report),
        lengths=_lengths(report, rows),
        costs=_costs(report),
        settings=_settings(report),
        picks=picks(report, rows) if rows else [],
        data=embedded(report, rows),
        command=shlex.join(report["command"]) if report.get("command") else None,
    )


def _judges(report: Mapping[str, Any]) -> list[str]:
    """Judges with scores."""
    models = report["models"].values()
    return [judge["name"] for judge in report["judges"] if all(judge["name"] in model["rewards"] for model in models)]


def _models_table(report: Mapping[str, Any]) -> dict[str, Any]:
    models, judges = report["models"], _judges(report)
    digits = {judge: _digits([model["rewards"][judge] for model in models.values()]) for judge in judges}
    kl = _digits([model["kl"] for model in models.values()])
    drawn = _digits([model["sampled_tokens"] for model in models.values()])
    of_metrics = {
        metric["name"]: _digits([value for model in models.values() if (value := model["metrics"][metric["name"]])])
        for metric in report["metrics"]
    }
    columns = [metric for metric in report["metrics"] if metric["is_column"]]

    def shown(metric: Mapping[str, Any], model: Mapping[str, Any]) -> Any:
        value = model["metrics"][metric["name"]]
        return wording.share(value) if metric["is_share"] else wording.estimate(value, of_metrics[metric["name"]])

    rows = [
        {
            "name": name,
            "made_by": wording.origin(model),
            "rewards": [wording.estimate(model["rewards"][judge], digits[judge]) for judge in judges],
            "kl": wording.estimate(model["kl"], kl) | {"note": wording.KL_NOTES[model["kl"]["by"]]},
            "metrics": [shown(metric, model) for metric in columns],
            "drawn": wording.estimate(model["sampled_tokens"], drawn),
        }
        for name, model in models.items()
    ]
    further = [
        {"label": metric["label"], "values": [shown(metric, model) for model in models.values()]}
        for metric in report["metrics"]
        if not metric["is_column"] and any(model["metrics"][metric["name"]] for model in models.values())
    ]
    chosen = any(model["best_of"] for model in models.values())
    return {"judges": judges, "columns": columns, "rows": rows, "further": further, "drawn": chosen}


def _texts(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Each model's loss on ordinary text."""
    if not report["texts"]:
        return None
    found = {name: model["texts"] for name, model in report["models"].items() if model["texts"] is not None}
    digits = {
        field: _digits([of[field] for of in found.values() if of[field]])
        for field in ("bits_per_byte", "change", "perplexity")
    }
    rows = [
        {
            "name": name,
            "verdict": of["verdict"],
            "same_tokenizer": of["same_tokenizer"],
            **{
                field: wording.estimate(of[field], digits[field], sign=field == "change")
                for field in ("bits_per_byte", "change", "perplexity")
            },
        }
        for name, of in found.items()
    ]
    return {"lede": texts_lede(report), "rows": rows}


def _abilities(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Each model on evaluation tasks."""
    if not report["abilities"]:
        return None
    rows = [
        {
            "task": row["task"],
            "measure": row["measure"].removesuffix(",none"),
            "items": row["items"],
            "cells": [
                {
                    "value": wording.estimate(of["value"], 3),
                    "change": of["change"] and wording.estimate(of["change"], 3, sign=True),
                    "verdict": of["verdict"],
                }
                for of in row["models"].values()
            ],
        }
        for row in report["abilities"]
    ]
    return {"lede": abilities_lede(report), "names": list(report["abilities"][0]["models"]), "rows": rows}


def _matrices(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Win-rates of the models in rows over those in columns, one table per judge."""
    names = list(report["models"])
    for judge in report["judges"]:
        cells: dict[tuple[str, str], dict[str, Any]] = {}
        for pair in report["pairs"]:
            if pair["judge"] != judge["name"]:
                continue
            low, high = wording.within(pair["ci95"])
            shown = pair["better"] is not None
            cells[pair["a"], pair["b"]] = _cell(pair["win_rate"], low, high, shown)
            cells[pair["b"], pair["a"]] = _cell(1 - pair["win_rate"], 1 - high, 1 - low, shown)
        yield {"judge": judge["name"], "rows": [[cells.get((row, column)) for column in names] for row in names]}


def _cell(mean: float, low: float, high: float, shown: bool) -> dict[str, Any]:
    return {
        "mean": wording.percent(mean),
        "interval": f"{wording.percent(low)} to {wording.percent(high)}",
        "kind": "even" if not shown else "more" if mean > 0.5 else "less",
        "heat": round(100 * abs(mean - 0.5)),
    }


def _pairs(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = []
    for judge in report["judges"]:
        pairs = [pair for pair in report["pairs"] if pair["judge"] == judge["name"]]
        differences = [pair["difference"] for pair in pairs if pair["difference"]]
        digits = _digits(differences)
        shown = [
            {
                "a": pair["a"],
                "b": pair["b"],
                "mean": pair["win_rate"],
                "ci95": pair["ci95"],
                "win_rate": wording.share({"mean": pair["win_rate"], "ci95": pair["ci95"]}),
                "length_controlled": wording.share(pair["length_controlled"]),
                "difference": wording.estimate(pair["difference"], digits, sign=True),
                "better": pair["better"],
                "better_difference": pair["better_difference"],
                "n": pair["n"],
            }
            for pair in pairs
        ]
        groups.append({"judge": judge["name"], "scores": bool(differences), "pairs": shown})
    return groups


def _checkpoints(report: Mapping[str, Any], judge: str) -> list[dict[str, Any]]:
    """A judge's points of the frontier; without a frontier the final weights' numbers."""
    found = [point for point in report["frontier"] if point["judge"] == judge]
    return found or [
        {
            "model": name,
            "seed": 0,
            "checkpoint": "model",
            "step": model.get("step"),
            "kl": model["kl"]["mean"],
            "kl_ci95": model["kl"]["ci95"],
            "reward": model["rewards"][judge]["mean"],
            "ci95": model["rewards"][judge]["ci95"],
        }
        for name, model in report["models"].items()
        if judge in model["rewards"] and model["kl"]["mean"] is not None
    ]


def _panel(report: Mapping[str, Any], judge: str, *, root: bool) -> charts.Panel:
    names, tracks = list(report["models"]), []
    checkpoints = _checkpoints(report, judge)
    at = math.sqrt if root else float
    for model, name in enumerate(names):
        own = [point for point in checkpoints if point["model"] == name]
        for seed in sorted({point["seed"] for point in own}):
            points = [
                charts.Point(
                    x=at(max(0.0, point["kl"])),
                    x_ends=(at(max(0.0, point["kl_ci95"][0])), at(max(0.0, point["kl_ci95"][1]))),
                    y=point["reward"],
                    y_ends=(point["ci95"][0], point["ci95"][1]),
                    label=_label(report, judge, point),
                )
                for point in own
                if point["seed"] == seed
            ]
            tracks.append(charts.Track(model, name, points))
    ends = [track.points[-1].y for track in tracks if track.name == report["baseline"]]
    return charts.Panel(f"{judge}, mean score", tracks, sum(ends) / len(ends) if ends else None)


def _label(report: Mapping[str, Any], judge: str, point: Mapping[str, Any]) -> str:
    where = point["model"]
    where += f", seed {point['seed']}" if report["seeds"] > 1 else ""
    where += "" if point["step"] is None else f", step {point['step']}"
    digits = wording.decimals([point["ci95"]])
    low, high = (wording.number(end, digits) for end in point["ci95"])
    return (
        f"{where}: {judge} {wording.number(point['reward'], digits)} ({low} to {high}) at KL "
        f"{wording.number(point['kl'])} nats"
    )


def _frontier(report: Mapping[str, Any]) -> dict[str, Any] | None:
    judges = _judges(report)
    if not judges:
        return None
    panel = _panel(report, judges[0], root=False)
    svg = charts.tracks_chart(
        [panel],
        ident="frontier-chart",
        title=f"{judges[0]} against KL, every checkpoint",
        description="Final weights: " + "; ".join(track.points[-1].label for track in panel.tracks) + ".",
        x_label=f"KL from {report['baseline']}, nats per response",
        height=262,
    )
    return {"judge": judges[0], "svg": svg, "points": _points_table(report, judges)}


def _points_table(report: Mapping[str, Any], judges: Sequence[str]) -> dict[str, Any]:
    rows = []
    by_judge = {judge: _checkpoints(report, judge) for judge in judges}
    digits = {judge: wording.decimals([point["ci95"] for point in points]) for judge, points in by_judge.items()}
    for several in zip(*by_judge.values(), strict=True):
        first = several[0]
        rows.append(
            {
                "name": first["model"],
                "seed": first["seed"],
                "checkpoint": first["checkpoint"],
                "step": "-" if first["step"] is None else f"{first['step']:,}",
                "kl": wording.estimate({"mean": first["kl"], "ci95": first["kl_ci95"]}, 2),
                "rewards": [
                    wording.estimate({"mean": point["reward"], "ci95": point["ci95"]}, digits[judge])
                    for judge, point in zip(judges, several, strict=True)
                ],
            }
        )
    return {"judges": list(judges), "rows": rows, "sampled": bool(report["frontier"])}


def _over_optimisation(report: Mapping[str, Any]) -> Markup | None:
    """One panel per judge over a shared axis: their scores have no common unit."""
    judges = _judges(report)
    if len(judges) < 2:
        return None
    panels = [_panel(report, judge, root=True) for judge in judges]
    ends = [f"{track.points[-1].label}" for panel in panels for track in panel.tracks]
    return charts.tracks_chart(
        panels,
        ident="over-chart",
        title=f"{' and '.join(judges)} against the square root of the KL",
        description="Final weights: " + "; ".join(ends) + ".",
        x_label=f"square root of the KL from {report['baseline']}",
        height=108,
        named=False,
    )


def _proxies(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "proxy": proxy,
            "against": of["against"],
            "numbers": [wording.number(of[field], 2, sign=True) for field in ("gain", "gain_against", "gap")]
            + [wording.number(of["correlation"])],
        }
        for name, model in report["models"].items()
        for proxy, of in model["proxies"].items()
    ]


def _lengths(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not rows:
        return None
    lengths = [
        (name, [response["tokens"] for row in rows for response in row["responses"][name]]) for name in report["models"]
    ]
    described = []
    for name, model in report["models"].items():
        p10, p50, p90 = (f"{model['length_quantiles'][p]:.0f}" for p in ("p10", "p50", "p90"))
        described.append(f"{name}: median {p50} tokens, 8 in 10 have {p10} to {p90}")
    return charts.lengths_chart(
        lengths, ident="length-chart", title="Lengths of the responses", description="; ".join(described) + "."
    )


def _costs(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """One row per quantity, one cell per model or reward model, each with its share of the largest."""
    columns: list[tuple[str, bool, Mapping[str, Any]]] = []
    for name, model in report["models"].items():
        if model["best_of"]:
            continue
        columns.append((name, False, model["cost"] or {}))
        if columns[-1][2].get("reward_model"):
            columns.append((name, True, columns[-1][2]["reward_model"]))
    rows = []
    for field, what in COSTS.items():
        values = [cost.get(field) for *_, cost in columns]
        if any(value is not None for value in values):
            most = max(value or 0 for value in values) or 1
            cells = [{"text": wording.cost(field, value), "part": round((value or 0) / most, 3)} for value in values]
            # Each cell has its own unit.
            rows.append({"what": what.replace(" seconds", " time").removesuffix(", MiB"), "cells": cells})
    return {"columns": [column[:2] for column in columns], "rows": rows} if rows else None


def _settings(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = list(report["models"])
    return [
        {
            "setting": setting["setting"],
            "values": [_written(setting["values"][name]) if name in setting["values"] else None for name in names],
        }
        for setting in report["settings"]
    ]


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return ", ".join(map(_written, value))
    return json.dumps(value, ensure_ascii=False)


def _digits(estimates: Sequence[Mapping[str, Any]]) -> int:
    intervals = [value["ci95"] for value in estimates if value["ci95"] is not None]
    return wording.decimals(intervals) if intervals else 3

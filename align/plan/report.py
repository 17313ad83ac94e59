"""A plan as text and as JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from align.plan.compute_optimal import BESIROGLU
from align.plan.duration import Utilisation
from align.plan.flops import flops_per_token
from align.plan.hardware import Hardware
from align.plan.job import Job
from align.plan.parameters import by_part, count
from align.plan.plan import Option, Plan
from align.plan.record import Check
from align.plan.sweep import Candidate

SCHEMA_VERSION = 1


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values; docs/plan.md describes the fields."""
    job, duration = plan.job, plan.duration
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": job.stage,
        "hardware": _hardware_json(plan.hardware),
        "configuration": _configuration_json(job),
        "parameters": {
            network.role: {
                "parts": by_part([*network.base(), *network.adapter()]),
                "trained": count(network.trained_weights()),
                "shares_base": network.shares_base,
            }
            for network in job.networks
        },
        "flops": {
            "per_token": {network.role: vars(flops_per_token(network, _context(job))) for network in job.trained},
            "run": None if plan.flops is None else plan.flops.parts(),
            "model": None if plan.flops is None else plan.flops.model,
            "total": None if plan.flops is None else plan.flops.total,
        },
        "tokens": {
            "steps": job.volume.steps,
            "trained": job.volume.trained,
            "sampled": job.volume.sampled,
            "read": dict(job.volume.read),
            "row": job.volume.row_tokens,
            "compute_optimal": plan.optimal_tokens,
            "compute_optimal_source": BESIROGLU.source,
            "twenty_per_parameter": plan.twenty_tokens,
        },
        "memory": {
            "parts": plan.memory.parts(),
            "peak": plan.memory.total,
            "available": plan.hardware.memory,
            "fits": plan.fits,
        },
        "seconds": None if duration is None else {"parts": duration.parts(), "total": duration.total},
        "utilisation": _utilisation_json(plan.utilisation),
        "cost_usd": plan.cost,
        "options": [_option_json(option) for option in plan.options],
        "assumed": list(job.volume.assumed),
    }


def sweep_json(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """The configurations of a sweep as JSON values, in its order."""
    return [
        {
            "hardware": one.hardware.key,
            "configuration": _configuration_json(one.job),
            "peak": one.memory.total,
            "seconds": one.duration.total,
            "cost_usd": one.cost,
        }
        for one in candidates
    ]


def _context(job: Job) -> int:
    return max(1, round(job.volume.row_tokens))


def _hardware_json(hardware: Hardware) -> dict[str, Any]:
    return {
        "key": hardware.key,
        "name": hardware.name,
        "memory": hardware.memory,
        "flops": dict(hardware.flops),
        "bandwidth": hardware.bandwidth,
        "interconnect": hardware.interconnect,
        "source": hardware.source,
        "price_usd_per_hour": hardware.price,
        "price_source": hardware.price_source,
        "price_date": hardware.price_date,
    }


def _configuration_json(job: Job) -> dict[str, Any]:
    return {
        "devices": job.strategy.devices,
        "strategy": job.strategy.name,
        "data_parallel": job.strategy.data,
        "tensor_parallel": job.strategy.tensor,
        "sharded": job.strategy.sharded,
        "precision": job.precision.name,
        "activation_checkpointing": job.recompute,
        "rows": job.rows,
        "accumulate_grad_batches": job.accumulate,
        "row_positions": job.tokens,
    }


def _utilisation_json(utilisation: Utilisation) -> dict[str, Any]:
    return {"mfu": utilisation.mfu, "source": utilisation.source}


def _option_json(option: Option) -> dict[str, Any]:
    return {
        **_configuration_json(option.job),
        "parts": option.memory.parts(),
        "peak": option.memory.total,
        "fits": option.fits,
        "largest_rows": option.largest_rows,
    }


# Text.


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """Print predicted against measured, run by run."""
    for one in checks:
        state = "" if one.finished else ": not finished, so nothing is measured"
        console.print(f"{one.stage}, {one.run}{state}", style="bold", highlight=False)
        table = Table("part", "predicted", "measured", "predicted / measured")
        for row in one.rows:
            values = (_amount(row.part, value) for value in (row.predicted, row.measured))
            table.add_row(row.part, *values, "-" if row.ratio is None else f"{row.ratio:.2f}")
        console.print(table, highlight=False)


def _amount(part: str, value: float | None) -> str:
    if value is None:
        return "-"
    form = {"memory": size, "seconds": duration}.get(part.partition(".")[0], quantity)
    return form(value)


def print_plan(plan: Plan, console: Console) -> None:
    """Print a plan."""
    job = plan.job
    head = f"{job.stage} on {plan.hardware.name} ({plan.hardware.key}), {_configuration(job)}"
    console.print(head, style="bold", highlight=False)
    table = Table.grid(padding=(0, 2))
    for name, value in _lines(plan):
        table.add_row(name, value)
    console.print(table, highlight=False)
    if plan.options:
        console.print(_options_table(plan.options), highlight=False)
    for line in job.volume.assumed:
        console.print(f"assumed: {line}", highlight=False)


def print_sweep(candidates: Sequence[Candidate], console: Console, *, limit: int = 10) -> None:
    """Print the first configurations of a sweep."""
    if not candidates:
        console.print("no configuration fits", highlight=False)
        return
    table = Table(
        "hardware", "devices", "strategy", "precision", "checkpointing", "rows x micro", "peak", "time", "cost"
    )
    for one in candidates[:limit]:
        job = one.job
        table.add_row(
            one.hardware.key,
            str(job.strategy.devices),
            job.strategy.name,
            job.precision.name,
            job.recompute,
            f"{job.rows} x {job.accumulate}",
            size(one.memory.total),
            duration(one.duration.total),
            "no price" if one.cost is None else money(one.cost),
        )
    console.print(table, highlight=False)
    best = candidates[0]
    what = "fastest (no price is known)" if best.cost is None else "cheapest"
    console.print(
        f"{what}: {best.job.strategy.devices} x {best.hardware.name}, {_configuration(best.job)}", highlight=False
    )
    if best.cost is not None:
        console.print(_price(best.hardware), highlight=False)


def _lines(plan: Plan) -> Iterable[tuple[str, str]]:
    job = plan.job
    for network in job.networks:
        weights = [*network.base(), *network.adapter()]
        parts = ", ".join(f"{part} {number:,}" for part, number in by_part(weights).items())
        trained = count(network.trained_weights())
        words = f"{count(weights):,}" if weights else "0, as it shares the policy's"
        yield f"parameters, {network.role}", f"{words}, {trained:,} trained{f' ({parts})' if parts else ''}"
    for network in job.trained:
        token = flops_per_token(network, _context(job))
        words = f"{_flop(token.total)} per training token in rows of {_context(job)}"
        yield f"FLOPs, {network.role}", f"{words} ({_flop(token.attention)} in attention)"
    yield "FLOPs of the run", _flops(plan)
    yield "tokens", _tokens(plan)
    yield "memory per device", _memory(plan)
    yield "time", _time(plan)
    yield "cost", _cost(plan)


def _flops(plan: Plan) -> str:
    if plan.flops is None:
        return "unknown: neither trainer.max_steps nor the size of the data is known"
    parts = ", ".join(f"{name} {flops:.3g}" for name, flops in plan.flops.parts().items())
    return f"{plan.flops.total:.3g} ({parts})"


def _tokens(plan: Plan) -> str:
    volume = plan.job.volume
    optimal = f"compute-optimal for this size: {quantity(plan.optimal_tokens)} ({BESIROGLU.source}"
    optimal += f"; {quantity(plan.twenty_tokens)} by 20 tokens per parameter)"
    if volume.trained is None:
        return optimal
    steps = f"{quantity(volume.trained)} in {volume.steps:,} optimizer steps"
    if volume.sampled:
        steps += f", {quantity(volume.sampled)} sampled"
    return f"{steps}; {optimal}" if plan.job.stage == "Pretrain" else steps


def _memory(plan: Plan) -> str:
    parts = ", ".join(f"{name} {size(number)}" for name, number in plan.memory.peak_parts().items())
    words = f"{size(plan.memory.total)} ({parts})"
    if plan.fits is None:
        return words
    return f"{words}: {'fits' if plan.fits else 'does not fit'} into {size(plan.hardware.memory or 0)}"


def _time(plan: Plan) -> str:
    if plan.flops is None:
        return "unknown, as the run's length is"
    if plan.duration is None:
        return f"unknown: {plan.hardware.name} has no known peak in {plan.job.precision.products}"
    parts = plan.duration.parts()
    words = duration(plan.duration.total)
    if len(parts) > 1:
        words += f" ({', '.join(f'{name} {duration(seconds)}' for name, seconds in parts.items())})"
    return f"{words} at MFU {plan.utilisation.mfu:.3g}, {plan.utilisation.source}; without validation and loading"


def _cost(plan: Plan) -> str:
    if plan.duration is None:
        return "unknown, as the time is"
    if plan.cost is None:
        return f"no price: {plan.hardware.price_source or 'this machine'}"
    return f"{money(plan.cost)} ({_price(plan.hardware)})"


def _price(hardware: Hardware) -> str:
    return f"{hardware.price:.4g} USD per device and hour on {hardware.price_date}: {hardware.price_source}"


def _options_table(options: Sequence[Option]) -> Table:
    table = Table("strategy", "precision", "peak", "fits", "largest micro-batch")
    for option in options:
        table.add_row(
            option.job.strategy.name,
            option.job.precision.name,
            size(option.memory.total),
            "yes" if option.fits else "no",
            f"{option.largest_rows} rows" if option.largest_rows else "-",
        )
    return table


def _configuration(job: Job) -> str:
    words = [job.strategy.name, job.precision.name, f"{job.rows} rows x {job.tokens} positions"]
    if job.accumulate > 1:
        words.append(f"{job.accumulate} micro-batches")
    if job.recompute != "none":
        words.append(f"activation checkpointing {job.recompute}")
    return ", ".join(words)


def size(number: float) -> str:
    """Bytes in GB, in MB below 10 MB."""
    return f"{number / 1e9:.2f} GB" if number >= 1e7 else f"{number / 1e6:.2f} MB"


def quantity(number: float) -> str:
    """A number in three digits, with M, G or T."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= factor:
            return f"{number / factor:.3g} {letter}"
    return f"{number:,.0f}"


def _flop(number: float) -> str:
    return f"{quantity(number)}FLOP" if number >= 1e6 else f"{quantity(number)} FLOP"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days."""
    for most, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < most:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86400:.3g} days"


def money(usd: float) -> str:
    """US dollars."""
    return f"{usd:,.2f} USD"

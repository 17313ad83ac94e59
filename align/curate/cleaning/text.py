"""The account of a cleaning run as Markdown."""

from collections.abc import Iterator

from align.curate.cleaning.account import Account, Amount, StepAccount


def as_markdown(account: Account, *, title: str) -> str:
    """The whole report.

    Args:
        account: of the run.
        title: of the corpus.
    """
    return "\n".join(_lines(account, title)) + "\n"


def _lines(account: Account, title: str) -> Iterator[str]:
    yield f"# {title}\n"
    yield (
        f"Kept {amount(account.kept)} of {amount(account.read)} "
        f"({share(account.kept.bytes, account.read.bytes)} of the bytes).\n"
    )
    yield "| split | documents | bytes |\n|---|---|---|"
    for name, part in account.splits.items():
        yield f"| {name} | {part.documents:,} | {part.bytes:,} |"
    yield "\n| step | source | documents in | removed | bytes in | removed | share | seconds |"
    yield "|---|---|---|---|---|---|---|---|"
    for step in account.steps:
        yield _row(step)
    yield f"\nSeconds are of work, over all tasks. Most memory of one process: {account.peak_mib:,.0f} MiB.\n"
    for step in account.steps:
        if step.reasons or step.samples:
            yield from _details(step)


def _row(step: StepAccount) -> str:
    source = step.source or "all"
    if step.before is None:
        cells = [f"{step.after.documents:,}", "", f"{step.after.bytes:,}", "", ""]
    else:
        gone = step.before - step.after
        cells = [f"{step.before.documents:,}", f"{gone.documents:,}", f"{step.before.bytes:,}", f"{gone.bytes:,}"]
        cells.append(share(gone.bytes, step.before.bytes))
    return f"| {step.step} | {source} | {' | '.join(cells)} | {step.seconds:,.1f} |"


def _details(step: StepAccount) -> Iterator[str]:
    yield f"## {step.step}\n"
    if step.reasons:
        yield ", ".join(f"{name}: {count:,}" for name, count in sorted(step.reasons.items(), key=_by_count)) + "\n"
    for sample in step.samples:
        reason = f" ({sample.reason})" if sample.reason else ""
        yield f"- `{sample.id}`{reason}: {_quoted(sample.text)}"
    yield ""


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _quoted(text: str) -> str:
    """As code, whatever is in it."""
    fence = "`" * (1 + max((len(run) for run in text.split() if set(run) == {"`"}), default=0))
    while fence in text:
        fence += "`"
    return f"{fence} {text} {fence}"


def amount(value: Amount) -> str:
    """Documents and bytes, for people."""
    return f"{value.documents:,} documents, {value.bytes / 1e6:,.1f} MB"


def share(part: float, whole: float) -> str:
    """A percentage; nothing of nothing is nothing."""
    return f"{part / whole:.1%}" if whole else "0.0%"

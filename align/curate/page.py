"""The report as one HTML file: no scripts, nothing loaded from elsewhere, readable on a phone and in the dark."""

from collections.abc import Iterator, Sequence
from html import escape

from align.curate.checks.tokens import histogram
from align.curate.context import Split
from align.curate.doctor import Diagnosis
from align.curate.report import ShownSample, StageReport, as_json

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2024; --soft: #60646c; --line: #d9d9e0; --box: #f7f7f8;
  --error: #c62a2f; --warning: #8f5a00; --note: #4a5568; --target: #d3f1da; --odd: #0000000a; --bar: #3e7bd6; }
@media (prefers-color-scheme: dark) { :root { --back: #111113; --text: #edeef0; --soft: #b0b4ba; --line: #363a3f;
  --box: #18191b; --error: #ff9592; --warning: #ffca16; --note: #b0b4ba; --target: #1b4332; --odd: #ffffff12;
  --bar: #70b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); font-size: .875rem; }
.finding { border: 1px solid var(--line); border-left: 4px solid var(--mark); border-radius: 6px;
  background: var(--box); padding: .6rem .8rem; margin: .5rem 0; }
.error { --mark: var(--error); } .warning { --mark: var(--warning); } .note { --mark: var(--line); }
.label { color: var(--mark); font-weight: 600; } .note .label { color: var(--note); }
details { margin-top: .3rem; } summary { cursor: pointer; min-height: 2rem; padding: .2rem 0; color: var(--soft); }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: 2px .6rem; font-size: .875rem;
  align-items: center; }
.bars i { display: block; height: .8rem; background: var(--bar); border-radius: 2px; min-width: 1px; }
.bars div { display: flex; gap: .4rem; align-items: center; }
.tokens { font: .875rem/1.9 ui-monospace, monospace; white-space: pre-wrap; border: 1px solid var(--line);
  border-radius: 6px; padding: .6rem; background: var(--box); }
.tokens span { border-radius: 2px; padding: .1rem 0; } .tokens span:nth-child(even) { background: var(--odd); }
.tokens .t { background: var(--target) !important; text-decoration: underline; text-underline-offset: 3px; }
.tokens .s { font-weight: 700; }
"""


def as_html(reports: Sequence[StageReport], *, title: str) -> str:
    """The whole report.

    Args:
        reports: of the stages.
        title: of the page, such as the recipe.
    """
    counts = as_json(reports)["counts"]
    words = ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items())
    body = "\n".join(part for report in reports for part in _stage(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>align doctor: {escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>align doctor: {escape(title)}</h1><p>{escape(words)}</p>\n{body}\n</body></html>\n"
    )


def _stage(report: StageReport) -> Iterator[str]:
    yield f"<h2>{escape(report.name)}</h2>"
    if report.not_checked:
        yield f'<p class="soft">Not checked: {escape(report.not_checked)}</p>'
        return
    yield f'<p class="soft">{escape(report.stage)}, {report.seconds:.1f} s</p>'
    for one in report.diagnoses:
        yield _finding(one)
    for name, split in (report.splits or {}).items():
        yield from _histogram(name, split)
    for number, sample in enumerate(report.samples, 1):
        yield from _sample(number, sample)


def _finding(one: Diagnosis) -> str:
    finding = one.finding
    where = f"{finding.split}: " if finding.split else ""
    parts = [
        f'<div class="finding {one.severity}"><p><span class="label">{one.severity}: {escape(one.check)}</span></p>',
        f"<p>{escape(where + finding.message)}</p>",
    ]
    if finding.fix:
        parts.append(f"<p><b>Fix:</b> {escape(finding.fix)}</p>")
    if finding.examples:
        lines = "".join(
            f'<p><span class="soft">{escape(example.where)}</span><br>{escape(example.text)}</p>'
            for example in finding.examples
        )
        parts.append(f"<details><summary>Examples</summary>{lines}</details>")
    return "".join(parts) + "</div>"


def _histogram(name: str, split: Split) -> Iterator[str]:
    if not split.samples:
        return
    bins = histogram(split)
    most = max(count for _, _, count in bins)
    yield f'<h3>{escape(name)}: tokens per record</h3><div class="bars">'
    for low, high, count in bins:
        yield (
            f"<span>{low:,}-{high:,}</span>"
            f'<div><i style="width:{80 * count / most:.1f}%"></i><span>{count:,}</span></div>'
        )
    yield "</div>"


def _sample(number: int, sample: ShownSample) -> Iterator[str]:
    title = f", {escape(sample.title)}" if sample.title else ""
    yield f"<h3>Example {number}{title}</h3>"
    yield f'<p class="soft">{escape(sample.where)}; what is trained on is underlined</p>'
    spans = []
    for token in sample.tokens:
        kinds = " ".join(("t",) * token.target + ("s",) * token.special)
        text = escape(token.text).replace("\n", "⏎\n")
        spans.append(f'<span class="{kinds}">{text}</span>' if kinds else f"<span>{text}</span>")
    yield f'<div class="tokens">{"".join(spans)}</div>'

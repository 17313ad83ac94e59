"""The report of `align doctor` as one HTML file."""

from collections.abc import Iterator, Sequence
from html import escape

from align.curate.checks.tokens import histogram
from align.curate.context import Split
from align.curate.doctor import Diagnosis
from align.curate.html import page
from align.curate.report import ShownSample, StageReport, as_json

_LIGHT = {"error": "#c62a2f", "warning": "#8f5a00", "note": "#4a5568", "target": "#d3f1da", "odd": "#0000000a"}
_DARK = {"error": "#ff9592", "warning": "#ffca16", "note": "#b0b4ba", "target": "#1b4332", "odd": "#ffffff12"}

_STYLE = """.finding { border: 1px solid var(--line); border-left: 4px solid var(--mark); border-radius: 6px;
  background: var(--box); padding: .6rem .8rem; margin: .5rem 0; }
.error { --mark: var(--error); } .warning { --mark: var(--warning); } .note { --mark: var(--line); }
.label { color: var(--mark); font-weight: 600; } .note .label { color: var(--note); }
details { margin-top: .3rem; }
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
    body = f"<p>{escape(words)}</p>\n{body}"
    return page(f"align doctor: {title}", body, style=_STYLE, light=_LIGHT, dark=_DARK)


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

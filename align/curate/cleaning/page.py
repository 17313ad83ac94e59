"""The account of a cleaning run as one HTML file."""

from collections.abc import Iterator
from html import escape

from align.curate.cleaning.account import Account, StepAccount
from align.curate.cleaning.text import amount, share
from align.curate.html import page

_LIGHT, _DARK = {"gone": "#e5484d"}, {"gone": "#ff9592"}

_STYLE = """.step { border: 1px solid var(--line); border-radius: 6px; background: var(--box); padding: .6rem .8rem;
  margin: .5rem 0; }
.bar { display: flex; height: .8rem; border-radius: 3px; overflow: hidden; margin: .4rem 0; background: var(--line); }
.bar i { background: var(--bar); } .bar b { background: var(--gone); }
code { font: .8125rem/1.5 ui-monospace, monospace; }
"""


def as_html(account: Account, *, title: str) -> str:
    """The whole report.

    Args:
        account: of the run.
        title: of the corpus.
    """
    whole = max(1, account.read.bytes)
    steps = "\n".join(part for step in account.steps for part in _step(step, whole))
    splits = ", ".join(f"{name}: {amount(part)}" for name, part in account.splits.items())
    body = (
        f"<p>Kept {amount(account.kept)} of {amount(account.read)} "
        f"({share(account.kept.bytes, account.read.bytes)} of the bytes).</p>"
        f'<p class="soft">{escape(splits)}. Most memory of one process: {account.peak_mib:,.0f} MiB. Bars: bytes kept '
        f"and removed, of all that was read.</p>\n<h2>Steps</h2>\n{steps}"
    )
    return page(title, body, style=_STYLE, light=_LIGHT, dark=_DARK)


def _step(step: StepAccount, whole: int) -> Iterator[str]:
    where = f"of {escape(step.source)}" if step.source else "of all sources"
    facts = f"{where}, {step.seconds:,.1f} s"
    yield f'<div class="step"><p><b>{escape(step.step)}</b> <span class="soft">{facts}</span></p>'
    kept = 100 * step.after.bytes / whole
    if step.before is None:
        yield f'<p>{amount(step.after)}</p><div class="bar"><i style="width:{kept:.2f}%"></i></div>'
    else:
        gone = step.before - step.after
        yield (
            f"<p>removed {amount(gone)} of {amount(step.before)} ({share(gone.bytes, step.before.bytes)})</p>"
            f'<div class="bar"><i style="width:{kept:.2f}%"></i>'
            f'<b style="width:{max(0.0, 100 * gone.bytes / whole):.2f}%"></b></div>'
        )
    if step.reasons:
        found = sorted(step.reasons.items(), key=lambda item: (-item[1], item[0]))
        yield f'<p class="soft">{escape(", ".join(f"{name}: {count:,}" for name, count in found))}</p>'
    if step.samples:
        lines = "".join(
            f'<p><span class="soft">{escape(sample.id)} {escape(sample.reason)}</span><br>'
            f"<code>{escape(sample.text)}</code></p>"
            for sample in step.samples
        )
        yield f"<details><summary>Samples of what was removed</summary>{lines}</details>"
    yield "</div>"

"""How often MinHash with banding finds pairs of texts over their similarity, and documents that packing splits."""

import numpy as np
from style import BLUE, GREEN, GREY, ORANGE, axes, save

from align.curate.minhash import BANDS, ROWS, near_duplicates, sketch
from align.data.rows import best_fit_rows, wrapped_rows

PAIRS, WORDS = 300, 200
random = np.random.default_rng(0)

figure, (left, right) = axes(2)
similarity = np.linspace(0, 1, 200)
left.plot(similarity, 1 - (1 - similarity**ROWS) ** BANDS, color=GREY, label=f"1 - (1 - J^{ROWS})^{BANDS}")
for replaced in (3, 6, 10, 14, 20, 28, 40, 60):
    found, jaccard = 0, []
    for _ in range(PAIRS):
        words = random.integers(0, 10**9, WORDS).astype(str)
        changed = words.copy()
        changed[random.choice(WORDS, replaced, replace=False)] = "other"
        pair = sketch([" ".join(words), " ".join(changed)])
        one, two = set(pair.shingles.of(0).tolist()), set(pair.shingles.of(1).tolist())
        jaccard.append(len(one & two) / len(one | two))
        found += near_duplicates(pair, threshold=1e-9)[1] == 0
    left.plot(np.mean(jaccard), found / PAIRS, "o", color=BLUE, label=f"of {PAIRS} pairs" if replaced == 3 else None)
left.set(xlabel="Jaccard similarity J", ylabel="P(candidate)")
left.legend(fontsize=8, loc="lower right")

sizes = np.minimum(random.lognormal(5, 1, 5000).astype(int) + 2, 8000)
bounds = np.concatenate([[0], np.cumsum(sizes)])
widths = np.array([128, 256, 512, 1024, 2048, 4096])

for name, color, lay_out in (
    ("wrap", GREEN, lambda width: wrapped_rows(bounds, width, block_diagonal=True)),
    ("best fit", ORANGE, lambda width: best_fit_rows(bounds, width)),
):
    split = []
    for width in widths:
        rows = lay_out(width)
        # A span of one token is the last token of the row before, which predicts nothing here.
        spans = rows.starts[rows.lengths > 1]
        split.append(100 * np.mean(np.bincount(np.searchsorted(bounds, spans, side="right") - 1) > 1))
    right.semilogx(widths, split, "o-", color=color, label=name)
right.set_xticks(widths, [str(width) for width in widths])
right.minorticks_off()
right.set(xlabel="width of a row, tokens", ylabel="documents that are split, %", ylim=(-2, 100))
right.legend(fontsize=8)
save(figure, __file__)

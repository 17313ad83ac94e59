"""Half-width of the interval of a win-rate over prompts, and the chance of a false win over the comparisons made."""

import numpy as np
from style import BLUE, GREY, ORANGE, axes, save

from align.evaluate.statistics import interval

figure, (left, right) = axes(2)
counts = np.array([25, 50, 100, 200, 400, 800, 1600, 3200])
half = []
for count in counts:
    estimate = interval((np.arange(count) % 2).astype(float)[None])
    half.append(50 * (estimate.high - estimate.low))
left.loglog(counts, half, "o", color=BLUE, label="bootstrap")
left.loglog(counts, 196 * np.sqrt(0.25 / counts), color=GREY, label="1.96 sqrt(0.25 / P)")
left.set_yticks([2, 5, 10, 20], ["2", "5", "10", "20"])
left.set_xticks([25, 100, 400, 1600], ["25", "100", "400", "1600"])
left.minorticks_off()
left.set(xlabel="prompts", ylabel="half-width, percentage points")
left.legend(fontsize=8)
comparisons = np.arange(1, 41)
right.plot(comparisons, 1 - 0.95**comparisons, color=ORANGE)
right.set(xlabel="comparisons between equal models", ylabel="P(at least one verdict)", ylim=(0, 1))
save(figure, __file__)

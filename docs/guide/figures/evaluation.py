"""Context of every token of a document read in windows, and pass@k of two models with the same pass@1."""

import numpy as np
from style import BLUE, GREEN, ORANGE, axes, save

from align.evaluate.programs import pass_at_k
from align.evaluate.text_loss import windows

CONTEXT, TOKENS = 256, 900
PROGRAMS, PROBLEMS = 200, 400

figure, (left, right) = axes(2)
for stride, color in ((256, BLUE), (128, ORANGE), (32, GREEN)):
    seen = np.zeros(TOKENS)
    position = 1
    for window in windows(range(TOKENS), [], CONTEXT, stride=stride):
        seen[position : position + len(window.ids)] = len(window.context) + np.arange(len(window.ids))
        position += len(window.ids)
    left.plot(range(1, TOKENS), seen[1:], color=color, label=f"stride {stride}")
left.set(xlabel="position in the document", ylabel="tokens that its prediction sees", ylim=(0, 330))
left.legend(fontsize=8, loc="upper left", ncol=3, columnspacing=1, handlelength=1)

random = np.random.default_rng(0)
models = {
    "20% on every problem": np.full(PROBLEMS, 0.2),
    "90% on some, 2% on the others": np.where(np.arange(PROBLEMS) < 0.2045 * PROBLEMS, 0.9, 0.02),
}
k = np.array([1, 2, 4, 8, 16, 32, 64, 100])
for (name, rates), color in zip(models.items(), (BLUE, ORANGE), strict=True):
    passed = random.random((PROBLEMS, PROGRAMS)) < rates[:, None]
    right.semilogx(k, [pass_at_k(passed, n).mean() for n in k], "o-", color=color, label=name)
right.set_xticks(k, [str(n) for n in k])
right.minorticks_off()
right.set(xlabel="k", ylabel="pass@k", ylim=(0, 1.02))
right.legend(fontsize=8, loc="lower right")
save(figure, __file__)

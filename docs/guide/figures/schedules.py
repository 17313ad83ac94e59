"""Factor of the learning rate over a thousand steps, for each schedule."""

from style import BLUE, GREEN, GREY, ORANGE, axes, save

from align.training.optimization import ScheduleConfig

STEPS = 1000

figure, (panel,) = axes(height=2.8)
for kind, color in (("cosine", BLUE), ("linear", ORANGE), ("wsd", GREEN), ("constant", GREY)):
    schedule = ScheduleConfig(kind=kind)
    panel.plot([schedule.factor(step, STEPS) for step in range(STEPS)], color=color, label=kind)
panel.set(xlabel="optimizer step", ylabel="factor of the peak", ylim=(0, 1.05))
panel.legend(loc="lower left", bbox_to_anchor=(0.12, 0.05))
save(figure, __file__)

"""A rendered chat as a strip of tokens, coloured by the loss mask."""

from matplotlib.patches import Patch, Rectangle
from style import GREY, ORANGE, axes, save

from align.tokenizer import train_tokenizer

PER_LINE = 11
tokenizer = train_tokenizer(["hi there. how are you? fine. and you? fine too. " * 3], vocab_size=280)
rendered = tokenizer.render_chat(
    [
        {"role": "user", "content": "how are you?"},
        {"role": "assistant", "content": "fine. and you?"},
        {"role": "user", "content": "fine too."},
        {"role": "assistant", "content": "hi there."},
    ],
    add_generation_prompt=False,
)

figure, (panel,) = axes(height=1.9)
for index, (number, counts) in enumerate(zip(rendered.ids, rendered.mask, strict=True)):
    line, column = divmod(index, PER_LINE)
    panel.add_patch(Rectangle((column, -line), 0.94, 0.8, color=ORANGE if counts else GREY, alpha=0.5))
    text = tokenizer.token_text(number).replace(" ", "·")
    panel.text(column + 0.47, -line + 0.4, text, ha="center", va="center", fontsize=7)
panel.set(xlim=(0, PER_LINE), ylim=(-((len(rendered.ids) - 1) // PER_LINE) - 0.2, 1))
panel.axis("off")
handles = [Patch(color=color, alpha=0.5, label=label) for color, label in ((ORANGE, "target"), (GREY, "only read"))]
figure.legend(handles=handles, loc="outside upper right", ncol=2)
save(figure, __file__)

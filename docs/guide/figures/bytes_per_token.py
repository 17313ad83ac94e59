"""Bytes per token over vocabulary size: tokenizers trained on most pages of docs/, applied to them and to the rest."""

from pathlib import Path

from style import BLUE, ORANGE, axes, save

from align.tokenizer import train_tokenizer

SIZES = (263, 400, 600, 1000, 2000, 4000, 8000)
pages = [path.read_text() for path in sorted((Path(__file__).resolve().parents[2]).glob("*.md"))]
parts = {"training pages": pages[::2], "held-out pages": pages[1::2]}
tokenizers = [train_tokenizer(parts["training pages"], vocab_size=size) for size in SIZES]

figure, (panel,) = axes()
for (name, texts), color in zip(parts.items(), (BLUE, ORANGE), strict=True):
    size = sum(len(text.encode()) for text in texts)
    rates = [size / sum(map(len, tokenizer.encode_batch(texts))) for tokenizer in tokenizers]
    panel.semilogx(SIZES, rates, "o-", color=color, label=name)
panel.set_xticks(SIZES, [str(size) for size in SIZES])
panel.minorticks_off()
panel.set(xlabel="vocabulary size, tokens", ylabel="bytes per token", ylim=(0, None))
panel.legend()
save(figure, __file__)

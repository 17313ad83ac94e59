"""Attention weights of random queries and keys under the causal mask and under a document mask."""

import torch
from style import axes, save

from align.model.attention import attend_reference, document_mask

TOKENS = 12
torch.manual_seed(1)
queries, keys = torch.randn(2, 1, 1, TOKENS, 16)
masks = {
    "causal": None,
    "two documents": document_mask(torch.tensor([[0] * 7 + [1] * 5])),
}

figure, panels = axes(2, height=3.6)
for panel, (name, mask) in zip(panels, masks.items(), strict=True):
    # The average of the rows of the identity is the weights themselves.
    weights = attend_reference(queries, keys, torch.eye(TOKENS)[None, None], mask=mask, dropout=0.0)[0, 0]
    picture = panel.imshow(weights, cmap="Blues", vmin=0, vmax=1)
    panel.set(title=name, xlabel="key position", ylabel="query position")
    panel.grid(visible=False)
figure.colorbar(picture, ax=panels, label="weight", shrink=0.8)
save(figure, __file__)

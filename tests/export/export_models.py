"""Small random models in directories as stages write them."""

from pathlib import Path

import torch

from align.io.directory import save_network
from align.io.manifest import write_manifest
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.tokenizer import Tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind; it's asleep.\n",
    "    def area(self, width=12, height=345):\n        return width * height  # 4140\n\n\n",
    "Größe, naïve café, Ærøskøbing; Привет, мир! 人工智能正在改变世界。\r\n",
    "Emoji: 😀😃 👩‍👩‍👧‍👦, marks: e\u0301 a\u0308, math: 𝒳𝓎 𝟘𝟙. She said: 'I'LL go', he'd've 1234567 ½ \t\t x\u00a0y\n",
    "=========== -------- !!!??? ((((())))) 'tis     \n",
]
SHAPE = {"layers": 2, "heads": 4, "width": 32, "ff_width": 64, "context": 64}
GPT2 = {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "qkv_bias": True, "bias": True}


@torch.no_grad()
def random_network(config: GPTConfig, *, scalar: bool = False) -> GPT | ScalarGPT:
    """Random values for every parameter, norms and biases too, so that a misplaced tensor is noticed."""
    torch.manual_seed(3)
    network = ScalarGPT(config) if scalar else GPT(config)
    for parameter in network.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.2)
    return network.eval()


def write_model(directory: Path, network: GPT | ScalarGPT, tokenizer: Tokenizer, **manifest: object) -> Path:
    """A model directory as a stage writes it."""
    tokenizer.save(directory)
    save_network(network, directory, bos_id=tokenizer.bos_id, eos_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    write_manifest(directory, {"stage": "sft", "step": 3, "metrics": {"val/loss": 1.5}, **manifest})
    return directory

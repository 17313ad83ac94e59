"""Every family of checkpoints: random ones as transformers writes them, through all that align does with a model.

One row per family, one column per check; a cell is the difference found, or why the check does not apply:

- logits: ours against transformers', float64, largest absolute difference
- greedy: responses equal to those of transformers' ``generate``, of all
- gradients: of the mean cross-entropy, float64, largest relative difference of a tensor (Frobenius norms)
- export: our directory in transformers, float32, largest difference of a logit
- LoRA: an adapter trained for a step, in a PeftModel over transformers' network, float32, largest difference of a logit
- GGUF out: our float32 file in llama.cpp, largest difference of a log-prob; and its greedy texts, of all
- GGUF in: the same file as a model, float32, largest difference of a logit

Soft caps are computed in float32 by transformers, and so are norms by both, hence the larger differences of some.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import machine

from align.adapters.lora import LoraConfig, add_adapter
from align.export.export_settings import ExportSettings
from align.export.gguf_file import FILE, check_gguf, write_gguf
from align.export.source import open_source
from align.export.verify_llama import LlamaReading
from align.generation.generate import generate
from align.generation.sampling_config import SamplingConfig
from align.io.adapter_directory import save_adapter
from align.io.directory import load_network, save_network
from align.io.families import family_of
from align.io.state_files import in_file
from align.model.gpt import GPT
from align.tokenizer import Tokenizer, train_tokenizer

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
GEMMA = {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "Mistral": ("MistralConfig", {"sliding_window": None, "tie_word_embeddings": False, "head_dim": 16}),
    "Mistral, window": ("MistralConfig", {"sliding_window": 8}),
    "Qwen2": ("Qwen2Config", {"rope_parameters": YARN}),
    "Qwen3": ("Qwen3Config", {"head_dim": 16, "rope_parameters": LINEAR}),
    "SmolLM3": ("SmolLM3Config", {}),
    "OLMo-2": ("Olmo2Config", {}),
    "Gemma 2": ("Gemma2Config", GEMMA),
    "Gemma 3": ("Gemma3TextConfig", GEMMA | {"num_hidden_layers": 7}),
    "GPT-2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "GPT-NeoX": ("GPTNeoXConfig", {"hidden_dropout": 0.0, "rotary_pct": 0.5}),
}
"""transformers' configuration class and its settings beyond SHAPE, by family"""

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind; it's asleep.\n",
    "    def area(self, width=12, height=345):\n        return width * height  # 4140\n",
    "Größe, naïve café, Привет, мир! 人工智能正在改变世界。\n",
]
PROMPTS = ["The quick brown", "return width *", "Größe", "12 and 345", "dog", "the lazy dog doesn't mind", " ", "é"]
NEW_TOKENS = 24


class Checkpoint:
    """A random checkpoint, in transformers and here.

    Attributes:
        family: its name.
        theirs: directory that transformers wrote, with a tokenizer.
        directory: for what checks write.
        tokenizer: of the network.
        ids: ``[2, 100]`` random tokens.
    """

    def __init__(self, family: str, tokenizer: Tokenizer, directory: Path) -> None:
        """Write it."""
        import transformers

        kind, options = FAMILIES[family]
        shape = {} if family == "GPT-2" else SHAPE
        special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": list(tokenizer.stop_ids), "pad_token_id": None}
        config = getattr(transformers, kind)(**shape | special | {"vocab_size": tokenizer.vocab_size} | options)
        self.family, self.theirs, self.directory, self.tokenizer = family, directory / "theirs", directory, tokenizer
        torch.manual_seed(1)
        network = transformers.AutoModelForCausalLM.from_config(config).double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
        network.save_pretrained(self.theirs)
        tokenizer.save(self.theirs)
        generator = torch.Generator().manual_seed(2)
        self.ids = torch.randint(0, tokenizer.vocab_size, (2, 100), generator=generator)

    def in_transformers(self, dtype: torch.dtype, directory: Path | None = None) -> Any:
        """Transformers' network."""
        from transformers import AutoModelForCausalLM

        # Of its implementations only this one, with a softmax in float32, has soft caps.
        eager = {"attn_implementation": "eager"} if self.family == "Gemma 2" else {}
        return AutoModelForCausalLM.from_pretrained(directory or self.theirs, dtype=dtype, **eager).eval()

    def here(self, dtype: torch.dtype) -> GPT:
        """Our network."""
        return load_network(self.theirs, dtype=dtype).eval()

    def prompts(self) -> list[list[int]]:
        """Token ids."""
        return [self.tokenizer.encode(prompt) for prompt in PROMPTS]


@torch.no_grad()
def logits(checkpoint: Checkpoint) -> str:
    """See the module."""
    theirs = checkpoint.in_transformers(torch.float64)(checkpoint.ids).logits
    return _number(checkpoint.here(torch.float64)(checkpoint.ids) - theirs)


@torch.no_grad()
def greedy(checkpoint: Checkpoint) -> str:
    """See the module."""
    theirs = checkpoint.in_transformers(torch.float32)
    same = 0
    for prompt, ours in zip(checkpoint.prompts(), _greedy(checkpoint), strict=True):
        ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
        same += ids[0, len(prompt) :].tolist() == ours
    return f"{same} of {len(PROMPTS)}"


def gradients(checkpoint: Checkpoint) -> str:
    """See the module."""
    ours, theirs, ids = checkpoint.here(torch.float64), checkpoint.in_transformers(torch.float64), checkpoint.ids
    _loss(ours(ids), ids).backward()
    _loss(theirs(ids).logits, ids).backward()
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    right = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    right["embed_out.weight"] = right.get("lm_head.weight")  # GPT-NeoX's name in files
    worst = 0.0
    for tensor in family_of(ours.config).layout(found, ours.config):
        grad = in_file(tensor, found)
        worst = max(worst, ((grad - right[tensor.name]).norm() / right[tensor.name].norm()).item())
    return f"{worst:.0e}"


@torch.no_grad()
def export(checkpoint: Checkpoint) -> str:
    """See the module."""
    ours, directory = checkpoint.here(torch.float32), checkpoint.directory / "ours"
    save_network(ours, directory, bos_id=None, eos_ids=[1], pad_id=None)
    return _number(ours(checkpoint.ids) - checkpoint.in_transformers(torch.float32, directory)(checkpoint.ids).logits)


def lora(checkpoint: Checkpoint) -> str:
    """See the module."""
    from peft import PeftModel

    ours, ids = checkpoint.here(torch.float32), checkpoint.ids
    add_adapter(ours, LoraConfig(rank=4), seed=3)
    trained = [parameter for parameter in ours.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    before = ours(ids).detach()
    for _ in range(2):  # the first step changes B alone
        optimizer.zero_grad()
        _loss(ours(ids), ids).backward()
        optimizer.step()
    save_adapter(ours, checkpoint.directory / "adapter", base=str(checkpoint.theirs))
    peer = PeftModel.from_pretrained(checkpoint.in_transformers(torch.float32), checkpoint.directory / "adapter").eval()
    with torch.no_grad():
        found = ours.eval()(ids)
        assert (found - before).abs().max() > 0.01
        return _number(found - peer(ids).logits)


@torch.no_grad()
def gguf_out(checkpoint: Checkpoint) -> str:
    """See the module."""
    with _gguf(checkpoint) as file:
        ours = checkpoint.here(torch.float32)
        reading = LlamaReading(file, context=ours.config.context, vocab_size=ours.config.vocab_size)
        ids = checkpoint.ids[0]
        theirs = reading.logprobs(ids.tolist(), 1)
        difference = (ours(ids[None])[0, :-1].log_softmax(-1) - theirs).nan_to_num(0)
        texts = [checkpoint.tokenizer.decode(text) for text in _greedy(checkpoint)]
        theirs_texts = reading.respond(checkpoint.prompts(), NEW_TOKENS)
        same = sum(text == other for text, other in zip(texts, theirs_texts, strict=True))
        reading.close()
    return f"{_number(difference)}; {same} of {len(PROMPTS)}"


@torch.no_grad()
def gguf_in(checkpoint: Checkpoint) -> str:
    """See the module."""
    with _gguf(checkpoint) as file:
        return _number(load_network(file).eval()(checkpoint.ids) - checkpoint.here(torch.float32)(checkpoint.ids))


CHECKS: Mapping[str, Callable[[Checkpoint], str]] = {
    "logits": logits,
    "greedy": greedy,
    "gradients": gradients,
    "export": export,
    "LoRA": lora,
    "GGUF out": gguf_out,
    "GGUF in": gguf_in,
}


@contextmanager
def _gguf(checkpoint: Checkpoint) -> Iterator[Path]:
    """A float32 GGUF file of the checkpoint."""
    source, settings = open_source(str(checkpoint.theirs)), ExportSettings(format="gguf", dtype="float32")
    check_gguf(source, settings)
    with tempfile.TemporaryDirectory(dir=checkpoint.directory) as folder:
        write_gguf(source, Path(folder), settings)
        yield Path(folder) / FILE


def _greedy(checkpoint: Checkpoint) -> list[list[int]]:
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=NEW_TOKENS)
    stops = checkpoint.tokenizer.stop_ids
    found = generate(checkpoint.here(torch.float32), checkpoint.prompts(), sampling, stop_ids=stops)
    return [ids[mask].tolist() for ids, mask in zip(found.ids, found.mask, strict=True)]


def _loss(found: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(found[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def _number(difference: torch.Tensor) -> str:
    return f"{difference.abs().max().item():.0e}"


def measure(family: str, checks: list[str], tokenizer: Tokenizer) -> dict[str, str]:
    """The cells of one row."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ALIGN_CACHE"] = str(Path(folder, "cache"))
        checkpoint = Checkpoint(family, tokenizer, Path(folder))
        row = {}
        for check in checks:
            try:
                row[check] = CHECKS[check](checkpoint)
            except ValueError as error:
                row[check] = "refused: " + str(error).removeprefix(f"{checkpoint.theirs}: ")
        return row


def main() -> None:
    """Measure every family and print a Markdown table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--families", default=";".join(FAMILIES), help="list, separated by semicolons")
    p.add_argument("--checks", default=",".join(CHECKS), help="comma list")
    p.add_argument("--out", type=Path, help="write the table to this JSON file")
    args = p.parse_args()
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=400)
    checks = args.checks.split(",")
    print(f"| family | {' | '.join(checks)} |\n|{'---|' * (len(checks) + 1)}")
    rows = {}
    for family in args.families.split(";"):
        rows[family] = measure(family, checks, tokenizer)
        print(f"| {family} | {' | '.join(rows[family].values())} |", flush=True)
    print(f"\n{machine()}; {date.today()}")
    if args.out:
        facts = {"command": " ".join(sys.argv), "machine": machine(), "date": str(date.today())}
        args.out.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

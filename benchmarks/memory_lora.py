"""Peak memory of DPO and PPO: full copies of the network, or adapters on a base in float32, bfloat16 or 4 bits.

Each runs in its own process: a few optimizer steps on random ids, no checkpoints. `net_mb` is the peak minus the memory
of the process after all imports. Full copies: DPO has policy and reference, PPO policy, value model,
reference and reward model. Adapters: the same networks on one base, rank 16 on every matrix of the blocks, the reward
model an adapter too. The reference runs in every step: cached log-probs would hide its memory.

glibc keeps freed memory in its heap, which fragments: with MALLOC_MMAP_THRESHOLD_ set as below, the measurement shows
what the networks need.

    MALLOC_MMAP_THRESHOLD_=524288 python benchmarks/memory_lora.py --rounds 1 --threads 1 \\
        --out benchmarks/results/memory_lora.json
"""

import tempfile
from pathlib import Path
from typing import Any

import measure
from measure import Numbers, Setting, peak_rss_mb, rss_mb

SHAPES: dict[str, dict[str, int]] = {
    "12M": {"vocab_size": 4096, "layers": 6, "heads": 6, "width": 384, "context": 256},
    "100M": {"vocab_size": 16384, "layers": 12, "heads": 12, "width": 768, "context": 256},
}
PAD, EOS = 0, 1


def full(setting: Setting) -> Numbers:
    """Every network whole."""
    return _train(setting, None)


def lora(setting: Setting) -> Numbers:
    """Adapters on a float32 base."""
    return _train(setting, "float32")


def lora_bf16(setting: Setting) -> Numbers:
    """Adapters on a bfloat16 base."""
    return _train(setting, "bfloat16")


def lora_nf4(setting: Setting) -> Numbers:
    """Adapters on 4-bit matrices (QLoRA), embeddings and products in float32."""
    from align.training.qlora import FourBit

    return _train(setting, "float32", plugins=[FourBit(dtype="float32")])


PEERS = {"full": full, "lora": lora, "lora-bf16": lora_bf16, "lora-nf4": lora_nf4}


def settings(folder: str, shapes: list[str], *, rows: int, prompt: int, response: int) -> list[Setting]:
    """What is equal for all: ``rows`` pairs or responses of an optimizer step, and their tokens."""
    sizes = {"rows": rows, "prompt": prompt, "response": response}
    return [
        {"name": f"{method} {shape}", "method": method, "shape": shape, "folder": f"{folder}/{shape}", **sizes}
        for shape in shapes
        for method in ("dpo", "ppo")
    ]


def prepare(folder: Path, shape: dict[str, int]) -> None:
    """Write an initial model, a reward model on it, and the same as an adapter: random weights, unused tokenizers."""
    from align.adapters.lora import LoraConfig, add_adapter, share_base
    from align.io.adapter_directory import save_adapter
    from align.io.directory import save_network
    from align.model.config import GPTConfig
    from align.model.gpt import GPT, ScalarGPT
    from align.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["a b"], vocab_size=263)
    start = GPT(GPTConfig(**shape))
    ids: dict[str, Any] = {"bos_id": None, "eos_ids": [EOS], "pad_id": PAD}
    save_network(start, folder / "start", **ids)
    reward = share_base(start, ScalarGPT)
    save_network(reward, folder / "reward", **ids)
    add_adapter(reward, LoraConfig())
    save_adapter(reward, folder / "adapter", base=str(folder / "start"))
    for name in ("start", "reward", "adapter"):
        tokenizer.save(folder / name)


def _train(setting: Setting, base: str | None, **trainer_settings: Any) -> Numbers:
    import lightning.pytorch as pl

    from align.adapters.lora import LoraConfig, add_adapter
    from align.algorithms.dpo import DPO
    from align.algorithms.policy_evaluation import PolicyEvaluationConfig
    from align.algorithms.ppo import PPO
    from align.algorithms.ppo_settings import KLConfig, RolloutConfig, UpdateConfig
    from align.model.config import GPTConfig
    from align.model.gpt import GPT
    from align.training.optimization import OptimizerConfig

    folder, shape = Path(setting["folder"]), SHAPES.get(setting["shape"]) or setting["sizes"]
    common: dict[str, Any] = {
        "lora": None if base is None else LoraConfig(base_dtype=base),  # type: ignore[arg-type]
        "optimizer": OptimizerConfig(lr=1e-5, weight_decay=0.0),
        "policy_evaluation": PolicyEvaluationConfig(prompts=0),
    }
    if base is not None:
        # peft imports what it finds (torchao) only when the first adapter is made.
        add_adapter(GPT(GPTConfig(vocab_size=8, layers=1, heads=1, width=8, context=8)), LoraConfig(rank=1))
    imported = round(rss_mb("VmRSS"))
    if setting["method"] == "dpo":
        stage: Any = DPO(str(folder / "start"), reference_logprobs="on_the_fly", **common)
        data: Any = _pairs(setting, shape["vocab_size"])
    else:
        rollout = RolloutConfig(episodes=2 * setting["rows"], max_new_tokens=setting["response"])
        reward = folder / ("reward" if base is None else "adapter")
        update = UpdateConfig(epochs=1, minibatches=2, target_kl=None)
        stage = PPO(str(folder / "start"), str(reward), rollout=rollout, update=update, kl=KLConfig(), **common)
        data = _prompts(setting, shape["vocab_size"])
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        **trainer_settings,
    )
    trainer.fit(stage, data)
    assert trainer.global_step >= 2, "AdamW's moments exist from the first step on"
    peak = round(peak_rss_mb())
    trained = sum(parameter.numel() for parameter in stage.trained())
    return {"peak_mb": peak, "net_mb": peak - imported, "imported_mb": imported, "trained_parameters": trained}


def _pairs(setting: Setting, vocab_size: int) -> Any:
    import lightning.pytorch as pl
    import torch

    from align.batches import PairBatch

    rows, prompt, width = setting["rows"], setting["prompt"], setting["prompt"] + setting["response"]

    class Pairs(pl.LightningDataModule):
        """Two optimizer steps."""

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader([self._batch(seed) for seed in range(2)], batch_size=None)  # type: ignore

        def _batch(self, seed: int) -> PairBatch:
            generator = torch.Generator().manual_seed(seed)
            ids = torch.randint(2, vocab_size, (2 * rows, width), generator=generator)
            ids[rows:, :prompt] = ids[:rows, :prompt]
            mask = (torch.arange(width) >= prompt).expand(2 * rows, -1)
            lengths, prompts = torch.full((2 * rows,), width), torch.full((rows,), prompt)
            return PairBatch(ids, mask, lengths, prompts, torch.arange(rows), ("",) * rows, ({},) * rows)

    return Pairs()


def _prompts(setting: Setting, vocab_size: int) -> Any:
    import lightning.pytorch as pl
    import torch

    from align.batches import PromptBatch
    from align.tokenizer import Tokenizer

    rows, prompt = 2 * setting["rows"], setting["prompt"]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, vocab_size, (rows, prompt), generator=generator)
    batch = PromptBatch(ids, torch.full((rows,), prompt), torch.arange(rows), ("",) * rows, ({},) * rows)

    class Ids:
        """A tokenizer whose texts are not used."""

        pad_id, stop_ids, missing_ids = PAD, (EOS,), ()
        fingerprint = Tokenizer.load(Path(setting["folder"]) / "start").fingerprint

        def __init__(self) -> None:
            self.vocab_size = vocab_size

        def decode(self, ids: list[int]) -> str:
            return ""

    class Prompts(pl.LightningDataModule):
        """One iteration."""

        tokenizer, context = Ids(), prompt + setting["response"]

        def train_dataloader(self) -> Any:
            stage: Any = self.trainer.lightning_module  # type: ignore[union-attr]
            return stage.rollout_loader(torch.utils.data.DataLoader([batch], batch_size=None))  # type: ignore

    return Prompts()


def main() -> None:
    """Measure everything; this process writes the models, so that writing them does not count."""
    parser = measure.parser(__doc__ or "", PEERS)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma list")
    parser.add_argument("--rows", type=int, default=4, help="pairs, or responses, of an optimizer step")
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--response", type=int, default=64, help="tokens")
    args = parser.parse_args()
    shapes = args.shapes.split(",")
    with tempfile.TemporaryDirectory() as folder:
        for shape in shapes if not args.child else ():
            prepare(Path(folder, shape), SHAPES[shape])
        sizes = {"rows": args.rows, "prompt": args.prompt, "response": args.response}
        columns = ["peak_mb", "net_mb", "imported_mb", "trained_parameters"]
        measure.main(args, PEERS, settings(folder, shapes, **sizes), columns=columns)


if __name__ == "__main__":
    main()

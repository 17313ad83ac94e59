"""Optimizer steps of pretraining: the Lightning Trainer with align's stage, and a minimal torch loop, same model.

    python benchmarks/pretraining/bench_pretraining.py --rounds 3

Peers: ``loop`` the least code that trains our GPT (F.cross_entropy over all logits, torch's default AdamW, clipping);
``loop-same`` the same loop with our objective and optimizer, so that the difference is the Trainer's overhead;
``align`` our Pretrain stage through the Trainer with its callbacks, as `align fit` runs it; ``align-compile`` with
compile: true.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import Numbers, Setting, main, parser

SHAPE = {"vocab_size": 4096, "layers": 6, "heads": 6, "width": 384, "ff_width": 1024, "context": 256}


def _batches(setting: Setting) -> list:
    import torch

    from align.batches import TokenBatch

    batch, context = setting["batch"], SHAPE["context"]
    ids = torch.randint(4, 4096, (8, batch, context + 1), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(batch, context + 1, dtype=torch.bool)
    return [TokenBatch(rows, mask, None, None, torch.full((batch,), context)) for rows in ids]


def _report(setting: Setting, seconds: list[float], cpu: float, steps: int) -> Numbers:
    tokens = setting["batch"] * SHAPE["context"]
    return {"tokens_per_s": tokens / statistics.median(seconds), "tokens_per_cpu_s": tokens * steps / cpu}


def _loop(setting: Setting, same: bool) -> Numbers:
    import torch
    import torch.nn.functional as F

    from align.model.config import GPTConfig
    from align.model.gpt import GPT
    from align.objectives import next_token_loss
    from align.training.optimization import OptimizerConfig, build_optimizer

    network = GPT(GPTConfig(**SHAPE))
    if same:
        optimizer = build_optimizer(network.parameters(), OptimizerConfig(lr=3e-4))
    else:
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    batches, seconds = _batches(setting), []
    for step in range(setting["warmup"] + setting["steps"]):
        if step == setting["warmup"]:
            cpu = time.process_time()
        begun = time.perf_counter()
        ids, mask = batches[step % len(batches)][:2]
        if same:
            result = next_token_loss(network.hidden(ids[:, :-1]), network.output_weight, ids, mask)
            loss = result.loss / result.tokens
        else:
            loss = F.cross_entropy(network(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
    return _report(setting, seconds[setting["warmup"] :], time.process_time() - cpu, setting["steps"])


def _align(setting: Setting, compile: bool) -> Numbers:
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader

    from align.algorithms.pretrain import Pretrain
    from align.callbacks.loggers import RunLog
    from align.callbacks.throughput import Throughput
    from align.model.config import GPTConfig

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_train_batch_end(self, *_: object) -> None:
            self.marks.append(time.perf_counter())
            if len(self.marks) == setting["warmup"]:
                self.cpu = time.process_time()

    clock = Clock()
    steps = setting["warmup"] + setting["steps"]
    with tempfile.TemporaryDirectory() as run:
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=steps, max_epochs=-1, gradient_clip_val=1.0, log_every_n_steps=10,
            default_root_dir=run, logger=RunLog(run), enable_checkpointing=False, enable_model_summary=False,
            callbacks=[Throughput(), clock],
        )  # fmt: skip
        loader = DataLoader(_batches(setting) * (steps // 8 + 1), batch_size=None)
        trainer.fit(Pretrain(GPTConfig(**SHAPE), compile=compile), loader)
    cpu = time.process_time() - clock.cpu
    marks = clock.marks[setting["warmup"] - 1 :]
    return _report(setting, [b - a for a, b in zip(marks, marks[1:], strict=False)], cpu, setting["steps"])


PEERS = {
    "loop": lambda setting: _loop(setting, same=False),
    "loop-same": lambda setting: _loop(setting, same=True),
    "align": lambda setting: _align(setting, compile=False),
    "align-compile": lambda setting: _align(setting, compile=True),
}

if __name__ == "__main__":
    p = parser(__doc__, PEERS)
    p.add_argument("--batch", type=int, default=8, help="rows of 256 tokens per step")
    p.add_argument("--warmup", type=int, default=3, help="steps left out")
    p.add_argument("--steps", type=int, default=12, help="steps measured")
    a = p.parse_args()
    setting = {"name": f"12.2 M Llama, batch {a.batch} x 256", "batch": a.batch, "warmup": a.warmup, "steps": a.steps}
    main(a, PEERS, [setting], columns=["tokens_per_s", "tokens_per_cpu_s", "peak_rss_mb"])

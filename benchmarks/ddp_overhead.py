"""The cost of data parallelism: tokens/s of two processes with one thread each, and of one process with two threads.

Pretraining of a network of 11 million parameters on random tokens, 16 rows of 128 tokens per optimizer step in total,
under the Lightning Trainer with the ``ddp`` strategy on gloo; rounds are interleaved and medians reported.

    python benchmarks/ddp_overhead.py --out benchmarks/results/ddp_overhead.json
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from processes import launch

ROWS, TOKENS, VOCABULARY = 16, 128, 4096
PEERS = {"one process, two threads": (1, 2), "two processes, a thread each": (2, 1), "one process, one thread": (1, 1)}


def train(steps: int, out: Path) -> None:
    """Train in this rank; rank 0 writes the tokens per second of all ranks."""
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader

    from align.algorithms.pretrain import Pretrain
    from align.batches import TokenBatch
    from align.model.config import GPTConfig
    from align.model.gpt import GPT
    from align.training.optimization import ScheduleConfig

    class Clock(pl.Callback):
        """Time from the end of the third step to the end of the last."""

        begun = seconds = 0.0

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                self.begun = time.perf_counter()
            elif trainer.global_step == steps + 3:
                self.seconds = time.perf_counter() - self.begun

    class Data(pl.LightningDataModule):
        """Random rows; each rank has its part of the batch."""

        def train_dataloader(self) -> Any:
            rows = ROWS // self.trainer.world_size  # type: ignore[union-attr]
            ids = torch.randint(0, VOCABULARY, (rows, TOKENS + 1))
            mask, sizes = torch.ones_like(ids, dtype=torch.bool), torch.full((rows,), TOKENS)
            return DataLoader([TokenBatch(ids, mask, None, None, sizes)] * (steps + 3), batch_size=None)

    processes = int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(0)
    network = GPT(GPTConfig(vocab_size=VOCABULARY, layers=8, heads=8, width=320, context=TOKENS))
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=steps + 3,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(Pretrain(network=network, schedule=ScheduleConfig(kind="constant")), Data())
    if trainer.is_global_zero:
        found = {"tokens_per_s": ROWS * TOKENS * steps / clock.seconds, "parameters": network.num_parameters()}
        out.write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved repetitions; medians are reported")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps to time, after 3 warm-up steps")
    parser.add_argument("--out", type=Path, help="write every measurement to this JSON file")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return train(options.steps, options.child)
    found: dict[str, list[float]] = {peer: [] for peer in PEERS}
    parameters = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for peer, (count, threads) in list(PEERS.items())[:: -1 if number % 2 else 1]:
                file = Path(folder) / "found.json"
                words = [__file__, "--steps", str(options.steps), "--child", str(file)]
                launch(words, count, logs=Path(folder) / "run", threads=threads)
                numbers = json.loads(file.read_text())
                found[peer].append(numbers["tokens_per_s"])
                parameters = numbers["parameters"]
    medians = {peer: statistics.median(values) for peer, values in found.items()}
    one = medians["one process, two threads"]
    print(f"{parameters:,} parameters\n\n| | tokens/s | ratio |\n| --- | --- | --- |")
    for peer, value in medians.items():
        print(f"| {peer} | {value:,.0f} | {value / one:.2f} |")
    if options.out:
        facts = {"date": date.today().isoformat(), "machine": platform.processor() or platform.machine()}
        options.out.write_text(json.dumps(facts | {"parameters": parameters, "tokens_per_s": found}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()

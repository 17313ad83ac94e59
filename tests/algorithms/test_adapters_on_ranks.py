"""Adapters on several processes give those of one process: data parallel, FSDP2 and tensor parallel."""

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import peft  # noqa: F401 (once, before the fork)
import pytest
import torch
from dpo_pairs import WORDS, World
from dpo_pairs import fit as fit_pairs
from lightning.pytorch.callbacks import ModelCheckpoint
from ppo_parts import fit as fit_prompts
from ranks import on_two_ranks
from test_language_model import Batches, make_batch
from test_language_model import join as join_rows
from torch.distributed.device_mesh import init_device_mesh

from align.adapters.lora import LoraConfig, adapter_parameters, add_adapter, convert_base, share_base
from align.adapters.merging import MergedState, base_parameters
from align.algorithms.ppo import PPO
from align.algorithms.ppo_settings import RolloutConfig, UpdateConfig
from align.algorithms.reward_modeling import Reward
from align.algorithms.sft import SFT
from align.callbacks.model_directory import ModelDirectory
from align.data.pair_data import PromptData
from align.export.source import open_source
from align.generation.packed_blocks import can_pack
from align.io.directory import load_network
from align.io.lightning_checkpoint import read_stored
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.training.checkpoint_files import BackgroundIO
from align.training.memory import recompute_activations
from align.training.optimization import OptimizerConfig, ScheduleConfig
from align.training.sharding import gathered, local, shard, whole_copy
from align.training.strategy import ModelParallel

CONFIG = GPTConfig(vocab_size=11, layers=2, heads=4, kv_heads=2, width=16, ff_width=24, context=8)

LORA = LoraConfig(rank=4, alpha=8.0)
FAST: dict[str, Any] = {
    "optimizer": OptimizerConfig(lr=0.01, weight_decay=0.0),
    "schedule": ScheduleConfig(kind="constant"),
}
STRATEGIES: dict[str, Any] = {
    "ddp": lambda: "ddp",
    "fsdp2": ModelParallel,
    "tp": lambda: ModelParallel(tensor_parallel_size=2),
}


class Rows(Batches):
    """Rank 0 has two rows of 5 counted tokens, rank 1 three of 2: together what one process has."""

    def __init__(self):
        super().__init__([])

    def setup(self, stage):
        pairs = [(make_batch(2, 5, 2 * i), make_batch(3, 2, 2 * i + 1)) for i in range(3)]
        _, rank, _ = sharing = self.trainer.lightning_module.sharing
        self.train = [pair[rank] if sharing.ranks == 2 else join_rows(*pair) for pair in pairs]


def train(stage: str, world: World, *, strategy: str | None = None, **settings) -> Any:
    """A few steps of a stage with adapters, in this process or these."""
    settings = {"lora": LORA, **FAST, **settings}
    trainer: dict[str, Any] = {"gradient_clip_val": 0.5, "limit_val_batches": 0, "use_distributed_sampler": False}
    if strategy is not None:
        trainer |= {"strategy": STRATEGIES[strategy](), "devices": 2}
    pairs = world.data(batch_size=2 if strategy in ("ddp", "fsdp2") else 4)
    module: Any
    if stage == "sft":
        module = SFT(world.start, **settings)
        fit_pairs(module, Rows(), **trainer)
    elif stage == "reward":
        module = Reward(world.start, normalise_on=0, **settings)
        fit_pairs(module, pairs, **trainer)
    elif stage == "dpo":
        module = world.stage(reference_logprobs="on_the_fly", **settings)
        fit_pairs(module, pairs, accumulate_grad_batches=2, **trainer)
    else:
        # Policy, value model, reference and reward model stand on one base, with three adapters and two heads.
        rollout, update = RolloutConfig(episodes=4, max_new_tokens=6), UpdateConfig(epochs=2, minibatches=1)
        module = PPO(world.start, str(world.folder / "reward/adapter"), rollout=rollout, update=update, **settings)
        prompts = str(world.folder / "prompts.jsonl")
        data = PromptData(
            str(world.folder / "tokenizer"),
            prompts,
            context=40,
            batch_size=pairs.batch_size,
            cache_dir=world.folder / "cache",
        )
        fit_prompts(module, data=data, max_epochs=1, **trainer)
    return module


def networks(module: Any) -> dict[str, Any]:
    """What was trained, whole; call it on all ranks."""
    names = [name for name in module.trained_names if getattr(module, name) is not None]
    return {name: whole_copy(getattr(module, name)) for name in names}


def learned(module: Any) -> dict[str, torch.Tensor]:
    """What was trained beside the base, whole; call it on all ranks."""
    found = {}
    for name, network in networks(module).items():
        parts: dict[str, Any] = {**adapter_parameters(network)}
        parts |= {"score": network.score.weight} if hasattr(network, "score") else {}
        found |= {f"{name}.{part}": tensor.detach().clone() for part, tensor in parts.items()}
    return found


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """Euclidean distance of two ends, in units of how far training went."""
    assert one.keys() == other.keys() == start.keys()
    error, moved = (
        sum(float((a[name] - b[name]).square().sum()) for name in one) ** 0.5 for a, b in ((one, other), (one, start))
    )
    assert moved > 0
    return error / moved


STAGES = ("sft", "reward", "dpo", "ppo")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Pairs, prompts, a language model, and a reward model that was trained as an adapter on it."""
    world = World(tmp_path_factory.mktemp("world"))
    (world.folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "{word}"}}\n' for word in WORDS))
    module, keep = Reward(world.start, normalise_on=4, lora=LORA, **FAST), ModelDirectory(which="last")
    fit_pairs(module, world.data(), callbacks=[keep], default_root_dir=world.folder / "reward")
    return world


@pytest.fixture(scope="module")
def alone(world: World) -> dict[str, Any]:
    """Of each stage the start and the end in one process."""
    found = {}
    for stage in STAGES:
        end = learned(train(stage, world))
        found[stage] = (learned(train(stage, world, optimizer=OptimizerConfig(lr=1e-30))), end)
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_learn_what_one_learns(strategy: str, world: World, alone: dict[str, Any], tmp_path: Path):
    def work():
        ends = {stage: learned(train(stage, world, strategy=strategy)) for stage in STAGES}
        if torch.distributed.get_rank() == 0:
            torch.save(ends, tmp_path / "ends.pt")

    on_two_ranks(work, tmp_path / strategy)
    ends = torch.load(tmp_path / "ends.pt", weights_only=True)
    for stage, (start, end) in alone.items():
        assert apart(end, ends[stage], start) < 1e-4, stage


@pytest.mark.parametrize("strategy", ["fsdp2", "tp"])
def test_ranks_that_were_seeded_apart_learn_one_adapter(
    strategy: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A, which the first step leaves unchanged, is that of rank 0's seed, 7; and where B is sharded but A is not, A
    stays one under dropout."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)  # of seed_everything, which would seed them alike

    def work():
        rank = int(os.environ["RANK"])
        trainer = pl.Trainer(
            accelerator="cpu", devices=2, strategy=STRATEGIES[strategy](), max_epochs=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, use_distributed_sampler=False, limit_val_batches=0,
        )  # fmt: skip
        starts = []
        module = SFT(world.start, lora=LoraConfig(rank=4, dropout=0.5), **FAST)
        module.on_train_batch_end = lambda *_: starts.append(learned(module))
        torch.manual_seed(7 + rank)
        trainer.fit(module, Rows())
        expected = load_network(world.start)
        add_adapter(expected, LORA, seed=7)
        for part, tensor in adapter_parameters(expected).items():
            if "lora_A" in part and rank == 0:
                assert torch.equal(starts[0][f"network.{part}"], tensor), part
        for tensor in (local(part) for part in module.trained() if strategy == "tp" and local(part) is part):
            other = tensor.detach().clone()
            torch.distributed.broadcast(other, 0)
            assert torch.equal(tensor, other)

    on_two_ranks(work, tmp_path / "log")


def gradients(network, ids):
    hidden = network.hidden(ids)
    (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    return {name: part.grad for name, part in network.named_parameters() if part.grad is not None}


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def policy_and_value(lora: LoraConfig):
    """Two networks on one base, each with an adapter whose B is not 0."""
    policy = GPT(CONFIG)
    convert_base(policy, lora.dtype)
    value = share_base(policy, ScalarGPT)
    generator = torch.Generator().manual_seed(1)
    for network in (policy, value):
        add_adapter(network, lora)
        for part in adapter_parameters(network).values():
            part.data += 0.1 * torch.randn(part.shape, generator=generator)
    return policy, value


WAYS = {
    "plain": (LORA, "none"),
    "dora": (LoraConfig(rank=4, dora=True, rslora=True), "none"),
    "bfloat16": (LoraConfig(rank=4, base_dtype="bfloat16"), "none"),
    "checkpointing": (LORA, "block"),
    "some targets": (LoraConfig(rank=3, targets=("q_proj", "down_proj")), "selective"),
}


@pytest.mark.parametrize("devices", [(2, 1), (1, 2)], ids=["fsdp2", "tp"])
def test_networks_on_one_base_are_cut_apart_and_compute_the_same(devices: tuple[int, int], tmp_path: Path):
    """Gradients, samples and the whole copy, for each kind of adapter; each rank then holds half of the base."""
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])

    def work():
        torch.distributed.init_process_group("gloo")
        mesh = init_device_mesh("cpu", devices, mesh_dim_names=("data_parallel", "tensor_parallel"))
        for name, (lora, recompute) in WAYS.items():
            plain = policy_and_value(lora)
            cut = policy_and_value(lora)
            if lora.dora and devices == (1, 2):
                with pytest.raises(ValueError, match=r"lora\.dora.*tensor_parallel_size\D*2\b"):
                    shard(cut[0], mesh)
                continue
            for network in cut:
                recompute_activations(network, recompute)
                shard(network, mesh)
            for one, other in zip(plain, cut, strict=True):
                expected, found = gradients(one, ids), gradients(other, ids)
                assert found.keys() == expected.keys()
                for part, gradient in expected.items():
                    error = (whole(found[part]) - gradient).norm() / gradient.norm()
                    assert error < (0.05 if lora.dtype == torch.bfloat16 else 1e-5), (name, part, error)
                copied = whole_copy(other)
                if torch.distributed.get_rank() == 0:
                    state, merged = copied.state_dict(), MergedState(one)
                    assert all(torch.equal(tensor, state[part]) for part, tensor in one.state_dict().items())
                    assert all(torch.equal(tensor, merged[part]) for part, tensor in MergedState(copied).items())
            with gathered(cut[0]) as policy, torch.no_grad():
                assert can_pack(policy) == (devices == (2, 1))
                expected = plain[0](ids)
                assert (policy(ids) - expected).norm() < 0.02 * expected.norm()
            here = sum(local(part).numel() for part in base_parameters(cut[1]).values())
            assert here < 0.7 * sum(part.numel() for part in base_parameters(plain[1]).values())

    on_two_ranks(work, tmp_path / "log")


def test_a_sharded_run_writes_what_one_process_writes_and_goes_on_anywhere(world: World, tmp_path: Path):
    """DPO under FSDP2: its folders hold what learns and no more, and end alike under FSDP2, tensor parallelism and in
    one process; model/ and adapter/ are the same network."""

    def end(name: str, strategy: str | None, resume: Path | None = None) -> dict[str, torch.Tensor]:
        save = ModelCheckpoint(tmp_path / name, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer: dict[str, Any] = {"plugins": [BackgroundIO()]}
        if strategy is not None:
            trainer = {"strategy": STRATEGIES[strategy](), "devices": 2}
        trainer |= {"callbacks": [save, ModelDirectory(which="last")], "default_root_dir": tmp_path / name}
        module, data = world.stage(lora=LORA, **FAST), world.data(batch_size=2 if strategy == "fsdp2" else 4)
        fit_pairs(module, data, max_steps=3, ckpt_path=resume, enable_checkpointing=True, **trainer)
        return learned(module)

    half = tmp_path / "whole/step=2.ckpt"
    end("alone", None)
    file = tmp_path / "alone/step=2.ckpt"

    def work():
        ends = {"whole": end("whole", "fsdp2")}
        ends |= {name: end(name, name, half) for name in ("fsdp2", "tp")}
        ends["file"] = end("file", "fsdp2", file)
        if torch.distributed.get_rank() == 0:
            torch.save(ends, tmp_path / "ends.pt")

    on_two_ranks(work, tmp_path / "log")
    ends = torch.load(tmp_path / "ends.pt", weights_only=True)
    whole = ends["whole"]
    start = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    for other in (ends["fsdp2"], ends["tp"], ends["file"], end("one", None, half)):
        assert apart(whole, other, start) < 1e-5
    went_on = [tmp_path / name for name in ("fsdp2", "tp", "file", "one")]
    assert all((run / "step=3.ckpt").exists() and not (run / "step=1.ckpt").exists() for run in went_on)
    stored = read_stored(half)["state_dict"]
    assert {name.replace(".default", "") for name in stored} == set(whole)
    model, ids = load_network(tmp_path / "whole/model"), torch.arange(30)[None]
    for source in ("whole/adapter", "whole/step=3.ckpt", "one/model"):
        torch.testing.assert_close(open_source(str(tmp_path / source)).network(ids), model(ids), atol=1e-5, rtol=0)

"""align's side of ``real_model.py``: stages with LoRA on a pretrained model, under Lightning's Trainer."""

import tempfile
from pathlib import Path
from typing import Any

from ours_alignment import LEARNING, Chats, Pairs, Prompts, Ticks, train, write
from real_rows import Chat, make_chats
from rows import Clock, Numbers

from align.adapters.lora import LoraConfig
from align.algorithms.dpo import DPO
from align.algorithms.module import Stage
from align.algorithms.ppo import PPO
from align.algorithms.ppo_settings import KLConfig, RolloutConfig, ScoringConfig, UpdateConfig
from align.algorithms.sft import SFT
from align.data.data_module import TokenData
from align.objectives import GRPO
from align.tokenizer import Tokenizer
from align.tokenizer.prompts import encode_prompt


def measure(setting: dict[str, Any], **variant: Any) -> Numbers:
    """CPU and wall seconds of an optimizer step; of an iteration for GRPO.

    Args:
        setting: see ``real_model.settings``.
        variant: arguments of the stage, besides those of the setting.
    """
    tokenizer = Tokenizer.load(setting["model"])
    taken = len(encode_prompt(tokenizer, "time", chat=True)) - 1
    chats = make_chats(setting, tokenizer.encode, taken)
    clock = Clock(warmup=setting["warmup"], steps=setting["steps"])
    ticks = Ticks(clock, iterations=setting["method"] == "grpo")
    with tempfile.TemporaryDirectory() as folder:
        stage, data = _parts(setting, variant, Path(folder), chats)
        train(setting, stage, data, Path(folder, "run"), ticks)
    precomputed = isinstance(stage, DPO) and stage.precomputed
    return clock.numbers(reference_cpu=ticks.before if precomputed else None)


def _parts(setting: dict[str, Any], variant: dict[str, Any], folder: Path, chats: list[Chat]) -> tuple[Stage, Any]:
    """The stage and its data, both read from files, as with a recipe."""
    start, method = setting["model"], setting["method"]
    shared: dict[str, Any] = {"context": sum(setting["span"]) * 2, "batch_size": setting["batch"]}
    shared["cache_dir"] = str(folder / "cache")
    lora = LoraConfig(rank=setting["rank"], alpha=2.0 * setting["rank"])
    settings: dict[str, Any] = {"lora": lora, **LEARNING, **variant}
    stage: Stage
    data: TokenData
    if method == "sft":
        file = write(folder, [{"prompt": chat.prompt, "completion": chat.chosen} for chat in chats])
        stage, data = SFT(start, **settings), Chats(start, file, **shared)
    elif method == "dpo":
        stage, data = DPO(start, **settings), Pairs(start, write(folder, [c._asdict() for c in chats]), **shared)
    else:
        group = setting["group"]
        stage = PPO(
            start,
            "ours_alignment:reward_length",
            estimator=GRPO(),
            rollout=RolloutConfig(
                setting["batch"] * group, group, max_new_tokens=setting["new"], dtype=setting.get("dtype")
            ),
            scoring=ScoringConfig(missing_eos_penalty=0.0),
            update=UpdateConfig(epochs=1, minibatches=1, target_kl=None),
            kl=KLConfig(kl_coef=setting["kl_coef"]),
            **settings,
        )
        data = Prompts(start, write(folder, [{"prompt": chat.prompt} for chat in chats]), **shared)
    data.warmed(setting)  # type: ignore[attr-defined]
    if method == "grpo":
        data.tokenizer.stop_ids = ()  # every response has its full length
    return stage, data

"""TRL's side of ``real_model.py``: its trainers with peft's LoRA, gradient checkpointing off."""

import tempfile
from typing import Any

import datasets
import peft
import torch
import trl
from real_rows import Chat, make_chats
from rows import Clock, Meter, Numbers
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_alignment import common_settings, dataset, ticking

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def measure(setting: dict[str, Any], *, precomputed: bool = False) -> Numbers:
    """CPU and wall seconds of an optimizer step; of an iteration for GRPO.

    Args:
        setting: see ``real_model.settings``.
        precomputed: DPO only: reference log-probs before training instead of in every step.
    """
    datasets.disable_progress_bars()
    datasets.disable_caching()
    tokenizer = AutoTokenizer.from_pretrained(setting["model"])
    one = tokenizer.apply_chat_template([{"role": "user", "content": "time"}], add_generation_prompt=True)
    chats = make_chats(
        setting, lambda text: tokenizer.encode(text, add_special_tokens=False), len(one["input_ids"]) - 1
    )
    # The first rows are for the warm-up; then come all rows, each once.
    chats = chats[: setting["warmup"] * setting["batch"]] + chats
    clock = Clock(warmup=setting["warmup"], steps=setting["steps"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(setting, folder, chats, precomputed=precomputed)(
            AutoModelForCausalLM.from_pretrained(setting["model"], dtype=torch.float32),
            processing_class=tokenizer,
            peft_config=peft.LoraConfig(r=setting["rank"], lora_alpha=2 * setting["rank"], target_modules=LAYERS),
            callbacks=[ticking(clock)],
        )
        trainer.train()
    # The reference's pass included the rows of the warm-up.
    share = setting["rows"] / len(chats)
    return clock.numbers(reference_cpu=trainer.reference_cpu * share if precomputed else None)


def _trainer(setting: dict[str, Any], folder: str, chats: list[Chat], *, precomputed: bool) -> Any:
    """A function from model, tokenizer and adapter to the trainer."""
    common = common_settings(setting, folder)
    if setting["method"] == "sft":
        rows = [{"prompt": chat.messages("prompt"), "completion": chat.messages("chosen")} for chat in chats]
        args = trl.SFTConfig(**common, max_length=None)
        return lambda model, **parts: trl.SFTTrainer(model, args=args, train_dataset=dataset(rows), **parts)
    if setting["method"] == "dpo":
        rows = [{part: chat.messages(part) for part in chat._fields} for chat in chats]
        args = trl.DPOConfig(
            **common,
            max_length=None,
            precompute_ref_log_probs=precomputed,
            precompute_ref_batch_size=setting["batch"],
        )
        return lambda model, **parts: _TimedDPO(model, args=args, train_dataset=dataset(rows), **parts)
    common["per_device_train_batch_size"] = setting["batch"] * setting["group"]
    args = trl.GRPOConfig(
        **common,
        num_generations=setting["group"],
        max_completion_length=setting["new"],
        generation_kwargs={"min_new_tokens": setting["new"]},
        temperature=1.0,
        beta=setting["kl_coef"],
        shuffle_dataset=False,
    )
    rows = [{"prompt": chat.messages("prompt")} for chat in chats]
    return lambda model, **parts: trl.GRPOTrainer(model, reward_length, args=args, train_dataset=dataset(rows), **parts)


def reward_length(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """A reward that takes no time."""
    return [float(len(messages[0]["content"]) % 17) for messages in completions]


class _TimedDPO(trl.DPOTrainer):
    """Measures the reference's pass."""

    def _precompute_ref_logps(self, *args: Any) -> Any:
        with Meter() as meter:
            found = super()._precompute_ref_logps(*args)
        self.reference_cpu = meter.cpu
        return found

"""TRL's side of the alignment benchmark: its trainers as their documentation calls them, gradient checkpointing off."""

import os
import tempfile
from typing import Any

os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

import datasets
import trl
from rows import BOS, END, PAD, Clock, Meter, Numbers, Row, make_rows, word, words
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)


def measure(setting: dict[str, Any], *, precomputed: bool = False) -> Numbers:
    """CPU and wall seconds of an optimizer step; of an iteration for ppo and grpo.

    Args:
        setting: see ``bench_alignment.settings``.
        precomputed: dpo only: reference log-probs before training instead of in every step.
    """
    datasets.disable_progress_bars()
    datasets.disable_caching()
    rows = make_rows(setting["rows"], setting["lengths"], setting["shape"]["vocab_size"], span=setting["span"])
    # The first rows are for the warm-up; then come all rows, each once.
    rows = rows[: setting["warmup"] * setting["batch"]] + rows
    clock = Clock(warmup=setting["warmup"], steps=setting["steps"])
    make = {"sft": _sft, "reward": _reward, "dpo": _dpo, "ppo": _ppo, "grpo": _grpo}[setting["method"]]
    with tempfile.TemporaryDirectory() as folder:
        extra = {"precomputed": precomputed} if setting["method"] == "dpo" else {}
        trainer = make(setting, rows, common_settings(setting, folder), ticking(clock), **extra)
        trainer.train()
    # The reference's pass included the rows of the warm-up.
    share = setting["rows"] / len(rows)
    return clock.numbers(reference_cpu=trainer.reference_cpu * share if precomputed else None)


def common_settings(setting: dict[str, Any], folder: str) -> dict[str, Any]:
    """Settings of every trainer."""
    return {
        "output_dir": folder, "max_steps": setting["warmup"] + setting["steps"],
        "per_device_train_batch_size": setting["batch"], "learning_rate": 1e-6, "lr_scheduler_type": "constant",
        "weight_decay": 0.0, "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "report_to": [],
        "save_strategy": "no", "disable_tqdm": True, "train_sampling_strategy": "sequential",
    }  # fmt: skip


def _sft(setting: dict[str, Any], rows: list[Row], common: dict[str, Any], ticks: TrainerCallback) -> Any:
    args = trl.SFTConfig(**common, max_length=setting["shape"]["context"])
    data = dataset([{"prompt": words(row.prompt), "completion": words(row.chosen)} for row in rows])
    return trl.SFTTrainer(_policy(setting), args, train_dataset=data, callbacks=[ticks], **_processing(setting))


def _reward(setting: dict[str, Any], rows: list[Row], common: dict[str, Any], ticks: TrainerCallback) -> Any:
    args = trl.RewardConfig(**common, max_length=setting["shape"]["context"])
    whole = [{"chosen": words(row.prompt + row.chosen), "rejected": words(row.prompt + row.rejected)} for row in rows]
    return trl.RewardTrainer(
        _scorer(setting), args, train_dataset=dataset(whole), callbacks=[ticks], **_processing(setting)
    )


def _dpo(
    setting: dict[str, Any], rows: list[Row], common: dict[str, Any], ticks: TrainerCallback, *, precomputed: bool
) -> Any:
    class Timed(trl.DPOTrainer):
        def _precompute_ref_logps(self, *args: Any) -> Any:
            with Meter() as meter:
                found = super()._precompute_ref_logps(*args)
            self.reference_cpu = meter.cpu
            return found

    args = trl.DPOConfig(
        **common,
        max_length=setting["shape"]["context"],
        precompute_ref_log_probs=precomputed,
        precompute_ref_batch_size=setting["batch"],
    )
    policy, reference = _policy(setting), None
    if not precomputed:
        reference = _policy(setting)
        reference.load_state_dict(policy.state_dict())
    pairs = [{name: words(ids) for name, ids in row._asdict().items()} for row in rows]
    return Timed(policy, reference, args, train_dataset=dataset(pairs), callbacks=[ticks], **_processing(setting))


def _grpo(setting: dict[str, Any], rows: list[Row], common: dict[str, Any], ticks: TrainerCallback) -> Any:
    common["per_device_train_batch_size"] = setting["batch"] * setting["group"]
    args = trl.GRPOConfig(
        **common,
        num_generations=setting["group"],
        max_completion_length=setting["new"],
        temperature=1.0,
        shuffle_dataset=False,
    )

    def reward_length(completions: list[str], **_: Any) -> list[float]:
        return [float(len(text) % 17) for text in completions]

    data = dataset([{"prompt": words(row.prompt)} for row in rows])
    return trl.GRPOTrainer(
        _policy(setting), reward_length, args, train_dataset=data, callbacks=[ticks], **_processing(setting)
    )


def _ppo(setting: dict[str, Any], rows: list[Row], common: dict[str, Any], ticks: TrainerCallback) -> Any:
    """trl 1.12.0, the last one with PPO."""
    try:
        from trl.experimental.ppo import PPOConfig, PPOTrainer
    except ImportError:
        raise SystemExit(
            f"trl {trl.__version__} has no PPO: name the python of an environment with trl 1.12.0"
        ) from None

    batch = setting["batch"]
    common |= {"per_device_train_batch_size": batch // 2, "gradient_accumulation_steps": 2}
    args = PPOConfig(
        **common | {"max_steps": -1},
        total_episodes=(setting["warmup"] + setting["steps"]) * batch,
        num_ppo_epochs=4,
        num_mini_batches=1,
        local_rollout_forward_batch_size=batch,
        response_length=setting["new"],
        temperature=1.0,
        num_sample_generations=0,
    )
    # It shuffles, so every iteration uses all prompts.
    data = dataset([{"input_ids": row.prompt} for row in rows[:batch]])
    policy, reference = _policy(setting), _policy(setting)
    reference.load_state_dict(policy.state_dict())
    return PPOTrainer(
        args=args, model=policy, ref_model=reference, reward_model=_scorer(setting), value_model=_scorer(setting),
        train_dataset=data, callbacks=[ticks], **_processing(setting),
    )  # fmt: skip


def ticking(clock: Clock) -> TrainerCallback:
    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    return Ticks()


def _config(setting: dict[str, Any], **more: Any) -> LlamaConfig:
    shape = setting["shape"]
    return LlamaConfig(
        vocab_size=shape["vocab_size"], num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
        hidden_size=shape["width"], intermediate_size=shape["ff_width"], max_position_embeddings=shape["context"],
        tie_word_embeddings=True, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=END, **more,
    )  # fmt: skip


def _policy(setting: dict[str, Any]) -> LlamaForCausalLM:
    return LlamaForCausalLM(_config(setting))


def _scorer(setting: dict[str, Any]) -> LlamaForSequenceClassification:
    return LlamaForSequenceClassification(_config(setting, num_labels=1))


def _processing(setting: dict[str, Any]) -> dict[str, Any]:
    return {"processing_class": spelling_tokenizer(setting["shape"]["vocab_size"])}


def spelling_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """A tokenizer that reads the words that ``words`` writes."""
    whole = Tokenizer(models.WordLevel({word(number): number for number in range(vocab)}, unk_token=word(0)))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": word(PAD), "bos_token": word(BOS), "eos_token": word(END)}
    return PreTrainedTokenizerFast(tokenizer_object=whole, **special)


def dataset(records: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(records)

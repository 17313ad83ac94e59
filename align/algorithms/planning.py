"""A stage as ``align.plan`` sees it: its networks and settings, before or after they are built."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from align.adapters.lora import LoraConfig, adapters
from align.algorithms.module import Stage
from align.algorithms.ppo import PPO
from align.algorithms.ppo_networks import ValueHead
from align.algorithms.reference_stage import ReferenceStage
from align.algorithms.reward_modeling import Reward
from align.engines import Ours
from align.model.config import GPTConfig
from align.model.gpt import GPT, ScalarGPT
from align.plan.job import Job, PlannedNetwork, Rollout, Volume
from align.plan.precision import running_precision
from align.plan.strategy import Strategy
from align.plan.volume import ReadsReference

ROLES = {
    "network": "policy",
    "value": "value",
    "reference": "reference",
    "teacher": "teacher",
    "reward_network": "reward",
    "gold_network": "gold",
}
"""Attribute of a stage -> role of the network"""


class Source(NamedTuple):
    """A network on disk.

    Attributes:
        config: of the network.
        lora: of the adapter, if it is one.
    """

    config: GPTConfig
    lora: LoraConfig | None = None


def networks_to_load(stage: Stage, sources: Mapping[str, Source]) -> tuple[PlannedNetwork, ...]:
    """The networks that a stage will have.

    Args:
        stage: whose networks are not built.
        sources: role -> what is loaded: policy; teacher of a distillation; reference where it is not the policy's
            start; reward and gold where they are networks; value where ``value.init_from`` is set.
    """
    config, brought = sources["policy"]
    lora = stage.lora or brought
    adapted = lora is not None
    found = [PlannedNetwork("policy", config, trained=True, scalar=isinstance(stage, Reward), lora=lora)]
    # A view of the policy's base, with a frozen copy of the adapter it was loaded with.
    view = PlannedNetwork("reference", config, lora=brought, shares_base=True)
    if isinstance(stage, ReferenceStage):
        only_cached = stage.precomputed or not stage.needs_reference
        if adapted and "reference" not in sources:
            found.append(view)
        elif not only_cached or stage.policy_evaluation.wanted:
            found.append(PlannedNetwork("reference", sources.get("reference", sources["policy"]).config))
    if "teacher" in sources:
        found.append(PlannedNetwork("teacher", sources["teacher"].config))
    if isinstance(stage, PPO):
        if stage.value_config is not None:
            found.append(_value(stage, sources, lora))
        if adapted and "reference" not in sources:
            found.append(view)
        else:
            found.append(PlannedNetwork("reference", sources.get("reference", sources["policy"]).config))
        for role in ("reward", "gold"):
            if role in sources:
                source = sources[role]
                shares = adapted and source.lora is not None
                found.append(PlannedNetwork(role, source.config, scalar=True, lora=source.lora, shares_base=shares))
    return tuple(found)


def _value(stage: PPO, sources: Mapping[str, Source], lora: LoraConfig | None) -> PlannedNetwork:
    assert stage.value_config is not None
    policy = sources["policy"].config
    if stage.value_config.shared_trunk:
        return PlannedNetwork("value", policy, trained=True, scalar=True, head_only=True)
    config = sources.get("value", sources.get("reward", sources["policy"])).config
    shares = lora is not None and "value" not in sources
    return PlannedNetwork("value", config, trained=True, scalar=True, lora=lora, shares_base=shares)


def networks_in_memory(stage: Stage) -> tuple[PlannedNetwork, ...]:
    """The networks that a stage has built."""
    seen: set[int] = set()
    found = []
    for attribute, role in ROLES.items():
        module: Any = getattr(stage, attribute, None)
        if not isinstance(module, GPT | ScalarGPT | ValueHead):
            continue
        trained = attribute in stage.trained_names
        if isinstance(module, ValueHead):
            found.append(PlannedNetwork(role, stage.network.config, trained=True, scalar=True, head_only=True))
            continue
        ours = {id(parameter) for parameter in module.model.embed_tokens.parameters()}
        found.append(
            PlannedNetwork(
                role,
                module.config,
                trained=trained,
                scalar=isinstance(module, ScalarGPT),
                lora=next(iter(adapters(module).values()), None),
                shares_base=bool(ours & seen),
            )
        )
        seen |= ours
    return tuple(found)


def stage_settings(stage: Stage) -> dict[str, Any]:
    """Fields of a ``Job`` that the stage's settings decide."""
    memory = stage.memory_config
    base = "float32" if stage.lora is None else stage.lora.base_dtype
    return {
        "stage": type(stage).__name__,
        "recompute": memory.activation_checkpointing,
        "state_bits": stage.optimizer_config.state_bits,
        "muon": stage.optimizer_config.matrices == "muon",
        "frozen_bytes": 2 if memory.frozen_dtype == "bfloat16" else 4,
        "base_bytes": 2 if base == "bfloat16" else 4,
    }


def rollout_of(stage: Stage, *, prompt_tokens: float, longest_prompt: int, response_tokens: float) -> Rollout | None:
    """How a stage samples; None if it doesn't.

    Args:
        stage: built or not.
        prompt_tokens: mean of the prompts.
        longest_prompt: tokens.
        response_tokens: mean of the responses.
    """
    if not isinstance(stage, PPO):
        return None
    rollout, update = stage.rollout_config, stage.update_config
    readers = [role for role, name in (("reward", stage.reward_name), ("gold", stage.gold_name)) if _is_network(name)]
    if stage.value_config is not None and not stage.value_config.shared_trunk:
        readers.append("value")
    if stage.kl_config.needs_reference:
        readers.append("reference")
    one_step = update.epochs * update.minibatches == 1
    deferred = one_step and not stage.kl_config.needs_reference and stage.value_config is None
    if rollout.recomputes and not deferred:
        readers.append("policy")
    return Rollout(
        episodes=rollout.episodes,
        group_size=rollout.group_size,
        prompt_tokens=prompt_tokens,
        longest_prompt=longest_prompt,
        response_tokens=response_tokens,
        max_new_tokens=rollout.max_new_tokens,
        passes=update.epochs,
        steps=update.epochs * update.minibatches,
        readers=tuple(readers),
        narrow=rollout.dtype == "bfloat16",
        elsewhere=not isinstance(rollout.engine, Ours),
    )


def _is_network(name: object) -> bool:
    from align.rewards.functions import SHORT_NAMES

    return isinstance(name, str) and name not in SHORT_NAMES and ("/" in name or "\\" in name)


def live_job(stage: Stage, rows: int, tokens: int) -> Job:
    """What a stage in training computes on this rank.

    Args:
        stage: with networks built and a Trainer.
        rows: of a micro-batch.
        tokens: positions of a row, padding included.
    """
    trainer = stage.trainer
    settings = stage_settings(stage)
    four_bit = stage._four_bit is not None
    if isinstance(stage.network, GPT | ScalarGPT) and adapters(stage.network):
        narrow = stage.network.model.embed_tokens.weight.dtype == torch.bfloat16
        settings["base_bytes"] = 2 if narrow else 4
    return Job(
        networks=networks_in_memory(stage),
        rows=rows,
        tokens=tokens,
        volume=Volume(None, None, tokens),
        precision=running_precision(str(trainer.precision), four_bit=four_bit),
        strategy=live_strategy(stage),
        accumulate=trainer.accumulate_grad_batches,
        accelerator=trainer.strategy.root_device.type,
        **settings,
    )


def live_strategy(stage: Stage) -> Strategy:
    """How the Trainer shares the work."""
    mesh = stage.device_mesh
    if mesh is not None:
        data, tensor = (mesh[name].size() for name in ("data_parallel", "tensor_parallel"))
        return Strategy(data=data, tensor=tensor, sharded=data > 1)
    return Strategy(data=stage.trainer.world_size)


def is_model_parallel(kind: object) -> bool:
    """Whether a strategy's class shards weights."""
    return isinstance(kind, type) and issubclass(kind, ModelParallelStrategy)


def with_teacher(stage: Stage, volume: Volume) -> Volume:
    """The volume with what a teacher reads: as many tokens as the student trains on."""
    if getattr(stage, "teacher_source", None) is None or volume.trained is None:
        return volume
    return replace(volume, read={**volume.read, "teacher": volume.trained})


def reads_reference(stage: Stage) -> ReadsReference:
    """When a stage that learns from given responses computes log-probs of its reference."""
    if not isinstance(stage, ReferenceStage) or not stage.needs_reference:
        return "never"
    return "once" if stage.precomputed else "in_every_step"

"""Networks and jobs of the tests."""

from dataclasses import replace

from align.model.config import GPTConfig
from align.plan.hardware import Hardware
from align.plan.job import Job, PlannedNetwork, Rollout, Volume

GPT2 = GPTConfig(
    vocab_size=50257,
    layers=12,
    heads=12,
    width=768,
    ff_width=3072,
    context=1024,
    norm="layernorm",
    positions="learned",
    feed_forward="gelu",
    qkv_bias=True,
    bias=True,
)
LLAMA3_8B = GPTConfig(
    vocab_size=128256,
    layers=32,
    heads=32,
    kv_heads=8,
    width=4096,
    ff_width=14336,
    context=8192,
    tied_embeddings=False,
)
TINY = GPTConfig(vocab_size=50, layers=3, heads=4, kv_heads=2, width=64, ff_width=160, context=32)

DEVICE = Hardware(
    "test", "a test's", 10**9, {"float32": 1e12, "bfloat16": 4e12}, 1e11, 1e11, "made up", price=3.6, accelerator="cuda"
)


ROLLOUT = Rollout(
    episodes=16,
    group_size=2,
    prompt_tokens=8.0,
    longest_prompt=10,
    response_tokens=12.0,
    max_new_tokens=12,
    passes=1,
    steps=2,
    readers=("reference",),
)


def job(config=TINY, **settings) -> Job:
    """Pretraining of a network for 10 steps of 4 rows of 32 tokens."""
    network = settings.pop("network", PlannedNetwork("policy", config, trained=True))
    defaults = {"rows": 4, "tokens": 32, "volume": Volume(10, 1280.0, 32.0)}
    return replace(Job("Pretrain", (network,), **defaults), **settings)

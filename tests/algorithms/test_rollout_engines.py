"""PPO with an engine that is not the trainer's process: a fake of vLLM's server that samples with our network."""

import sys
from pathlib import Path

import pytest
import torch
from ppo_parts import Logged, PromptModule, Tokens, fit, policy, ppo
from test_ppo_resume import saving

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from fake_engines import serving, with_our_network

from align.algorithms.ppo_settings import RolloutConfig
from align.engines import VLLM, EngineError
from align.objectives import GRPO, RLOO


class Ids(Tokens):
    bos_id = None


class Data(PromptModule):
    def __init__(self):
        super().__init__()
        self.tokenizer = Ids()


def trained(engine=None, **settings):
    rollout = {"group_size": 2, "ahead": settings.pop("ahead", 0)} | ({} if engine is None else {"engine": engine})
    stage, logged = ppo(estimator=settings.pop("estimator", GRPO()), rollout=rollout), Logged()
    fit(stage, data=Data(), callbacks=[logged, *settings.pop("callbacks", ())], **{"max_epochs": 3} | settings)
    return stage, logged.rows


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("estimator", [GRPO(), RLOO()], ids=["grpo", "rloo"])
def test_the_policy_learns_the_same_with_both_engines(ahead, estimator):
    """The trainer recomputes log-probs and weights by a ratio that is 1 up to rounding."""
    ours, rows = trained(ahead=ahead, estimator=estimator)
    with serving(context=24) as (server, address):
        theirs, other = trained(VLLM(addresses=(address,)), ahead=ahead, estimator=estimator)
    for name, tensor in ours.network.state_dict().items():
        assert torch.allclose(tensor, theirs.network.state_dict()[name], atol=1e-5), name
    for row, same in zip(rows, other, strict=True):
        assert row["rollout/reward"] == same["rollout/reward"]
        assert same["rollout/logprob_gap"] == pytest.approx(row.get("rollout/logprob_gap", 0), abs=1e-4)
    assert len(server.loaded) == (2 if ahead else 3)  # ahead, the first two iterations sample with the same weights


def test_the_gap_is_measured_in_every_iteration_and_corrected():
    """An engine whose log-probs are 0.008 nats too low: the ratio exp(0.008) weights every token."""

    def off(*arguments):
        ids, logprobs, stopped = with_our_network(*arguments)
        return ids, [value - 0.008 for value in logprobs], stopped

    ours, _ = trained(max_epochs=1)
    with serving(off, context=24) as (_, address):
        theirs, rows = trained(VLLM(addresses=(address,)), max_epochs=2)
        kept, _ = trained(VLLM(addresses=(address,)), max_epochs=1)
    assert [row["rollout/logprob_gap"] for row in rows] == pytest.approx([0.008, 0.008], abs=1e-4)
    before, after = ours._loader.rollout, kept._loader.rollout
    assert torch.allclose(after.advantages, before.advantages * torch.tensor(0.008).exp(), atol=1e-5)


def test_a_dead_engine_ends_the_run_which_resumes_from_its_checkpoint(tmp_path: Path):
    """The engine fails in the third iteration: the run that resumes ends as one that never failed."""
    whole, _ = trained()
    with serving(context=24) as (server, address):

        def fails(model, prompt, sampling):
            if len(server.loaded) == 3:
                server.failure = "aborts"
            return with_our_network(model, prompt, sampling)

        server.sample = fails
        with pytest.raises(EngineError, match="abort"):
            trained(VLLM(addresses=(address,)), callbacks=[saving(tmp_path)], enable_checkpointing=True)
        server.failure = ""
        last = max(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.rpartition("=")[2]))
        assert torch.load(last, weights_only=True)["global_step"] == 8
        server.sample = with_our_network
        resumed, _ = trained(VLLM(addresses=(address,)), ckpt_path=str(last))
    for name, tensor in whole.network.state_dict().items():
        assert torch.allclose(tensor, resumed.network.state_dict()[name], atol=1e-5), name
    left = [path for path in Path("/dev/shm").glob("align-*") if path.name.removeprefix("align-") in server.model]
    assert not left


def test_an_engine_that_is_not_ours_recomputes_log_probs():
    assert RolloutConfig(engine=VLLM()).recomputes
    assert RolloutConfig(ahead=1).recomputes
    assert not RolloutConfig().recomputes
    assert ppo(network=policy(), rollout={"engine": VLLM()}).recompute_logprobs is True

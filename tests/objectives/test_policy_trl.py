"""The losses of an update and their gradients against TRL's GRPOTrainer, on the same log-probs."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOTrainer

from align.objectives import (
    K3,
    Average,
    ConstantLength,
    ResponseMean,
    SequenceClip,
    Surrogate,
    TokenClip,
    TokenMean,
    policy_loss,
)

LONGEST = 6
LENGTHS = torch.tensor([6, 2, 4, 1])


def trls(logprobs, old, reference, advantages, *, loss_type, level, low, high, beta):
    """TRL's loss of one batch, without accumulation."""
    mask = torch.arange(LONGEST) < LENGTHS[:, None]
    ids = torch.zeros(4, LONGEST, dtype=torch.long)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprobs, torch.zeros_like(logprobs), None),
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        loss_type=loss_type,
        epsilon_low=low,
        epsilon_high=high,
        max_completion_length=LONGEST,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x),
        current_gradient_accumulation_steps=1,
    )
    batch = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, trainer.model, batch)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize(
    ("loss_type", "level", "surrogate", "average"),
    [
        ("grpo", "token", TokenClip(), ResponseMean()),
        ("dapo", "token", TokenClip(0.2, 0.28), TokenMean()),
        ("bnpo", "token", TokenClip(), TokenMean()),
        ("dr_grpo", "token", TokenClip(), ConstantLength()),
        ("grpo", "sequence", SequenceClip(0.1, 0.2), ResponseMean()),
    ],
    ids=["grpo", "dapo", "bnpo", "dr-grpo", "gspo"],
)
def test_losses_and_gradients_equal_trls(loss_type: str, level: str, surrogate: Surrogate, average: Average, beta):
    generator = torch.Generator().manual_seed(0)
    logprobs, old, reference = 0.4 * torch.randn(3, 4, LONGEST, generator=generator, dtype=torch.float64) - 1
    advantages = torch.randn(4, generator=generator, dtype=torch.float64)
    theirs = logprobs.clone().requires_grad_()
    high = surrogate.low if surrogate.high is None else surrogate.high
    expected = trls(
        theirs, old, reference, advantages,
        loss_type=loss_type, level=level, low=surrogate.low, high=high, beta=beta,
    )  # fmt: skip
    expected.backward()

    mask = torch.arange(LONGEST) < LENGTHS[:, None]
    ours = logprobs[mask].clone().requires_grad_()
    found = policy_loss(surrogate, ours, old[mask], advantages.repeat_interleave(LENGTHS), LENGTHS)
    losses = found.losses + beta * K3().estimate(ours, reference[mask])
    loss = (losses * average.weights(LENGTHS)).sum() / average.count(LENGTHS, LONGEST)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad[mask])
    assert 0 < found.clip_fraction.item() < 1

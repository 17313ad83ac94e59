"""The default learning rates, against the runs and publications that they are taken from."""

import pytest

from align.training.defaults import FINE_TUNING, PREFERENCES, PRETRAINING, REINFORCEMENT, REWARD_MODELING

SMOLLM2 = 134_515_008


@pytest.mark.parametrize(("parameters", "published"), [(125e6, 6e-4), (1.3e9, 2e-4), (13e9, 1e-4), (175e9, 0.6e-4)])
def test_pretraining_follows_the_table_of_gpt3(parameters: float, published: float):
    assert PRETRAINING.lr(int(parameters), adapters=False) == pytest.approx(published, rel=0.45)


def test_rates_at_135_million_parameters():
    """Adapters on SmolLM2: 1e-3 learns in SFT and 1e-2 does not; 1e-4 learns in DPO and 1e-3 garbles."""
    assert FINE_TUNING.lr(SMOLLM2, adapters=True) == 1e-3
    assert FINE_TUNING.lr(SMOLLM2, adapters=False) == 1e-4
    assert PREFERENCES.lr(SMOLLM2, adapters=True) == 1e-4
    assert REINFORCEMENT.lr(SMOLLM2, adapters=True) == 5e-5


@pytest.mark.parametrize("rule", [PRETRAINING, FINE_TUNING, REWARD_MODELING, PREFERENCES, REINFORCEMENT])
def test_larger_networks_and_full_weights_learn_more_slowly(rule):
    sizes = [10**6, 10**8, 10**10]
    rates = [rule.lr(size, adapters=False) for size in sizes]
    assert rates == sorted(rates, reverse=True)
    assert all(
        rule.lr(size, adapters=True) == pytest.approx(10 * rate) for size, rate in zip(sizes, rates, strict=True)
    )


def test_a_power_law_by_hand():
    """32 times the parameters: 32^-0.4 = 1/4 of 1e-4."""
    assert FINE_TUNING.lr(32 * 135_000_000, adapters=False) == 2.5e-5


def test_the_number_of_parameters_is_checked():
    with pytest.raises(ValueError, match=r"parameters\D*0\b"):
        FINE_TUNING.lr(0, adapters=False)

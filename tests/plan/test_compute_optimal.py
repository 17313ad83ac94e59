"""Compute-optimal tokens, against the tables of the papers."""

import pytest

from align.plan.compute_optimal import BESIROGLU, HOFFMANN, TOKENS_PER_PARAMETER

TABLE_3 = {400e6: 8.0e9, 1e9: 20.2e9, 10e9: 205.1e9, 67e9: 1.5e12, 175e9: 3.7e12, 1e12: 21.2e12}
"""Hoffmann et al. 2022, table 3: parameters -> tokens"""


@pytest.mark.parametrize(("parameters", "tokens"), TABLE_3.items())
def test_twenty_tokens_per_parameter(parameters, tokens):
    assert TOKENS_PER_PARAMETER * parameters == pytest.approx(tokens, rel=0.12)


def test_the_corrected_fit_agrees_with_chinchilla_and_the_published_one_does_not():
    """70 G parameters and 1.4 T tokens; Besiroglu et al. find about 20 tokens per parameter, eq. 10 five times that."""
    assert BESIROGLU.tokens(70e9) == pytest.approx(1.4e12, rel=0.15)
    assert HOFFMANN.tokens(70e9) > 5 * 1.4e12


@pytest.mark.parametrize("law", [BESIROGLU, HOFFMANN])
@pytest.mark.parametrize("parameters", [1e8, 7e9, 4e11])
def test_the_optimum_is_the_least_loss_of_its_budget(law, parameters):
    """At C = 6 N D, one percent more or less parameters with the tokens that this leaves have a larger loss."""
    tokens = law.tokens(parameters)
    least = law.loss(parameters, tokens)
    for factor in (0.99, 1.01):
        assert law.loss(parameters * factor, tokens / factor) > least

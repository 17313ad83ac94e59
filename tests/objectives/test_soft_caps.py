"""Whoever computes log-probs from an output matrix also passes the network's soft cap."""

import ast
from pathlib import Path

import pytest
import torch

import align
from align.objectives.chunks import cap_logits

FUNCTIONS = {
    "linear_cross_entropy",
    "next_token_loss",
    "response_logprobs",
    "row_nll",
    "sequence_logprobs",
    "token_logprobs",
    "token_logprobs_and_entropy",
}
ROOT = Path(align.__file__).parent
FILES = [path for path in sorted(ROOT.rglob("*.py")) if "objectives" not in path.parts]


def calls(path: Path) -> list[ast.Call]:
    """Calls of functions imported from the objectives; a module may have a function of the same name."""
    tree = ast.parse(path.read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("align.objectives")
        for alias in node.names
        if alias.name in FUNCTIONS
    }
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [node for node in found if node.func.id in imported]


def test_every_call_names_the_soft_cap():
    found = [(path, call) for path in FILES for call in calls(path)]
    assert len(found) >= 6
    for path, call in found:
        assert "softcap" in {keyword.arg for keyword in call.keywords}, f"{path}:{call.lineno}"


def test_a_cap_by_hand():
    """2 tanh(l / 2) of 0 and of 2 artanh(1/2) = ln 3 is 0 and 1; the derivative is 1 - tanh^2: 1 and 3/4."""
    logits = torch.log(torch.tensor([1.0, 3.0]))
    slope = cap_logits(logits, 2.0)
    assert logits.tolist() == pytest.approx([0.0, 1.0])
    assert slope is not None
    assert slope.tolist() == pytest.approx([1.0, 0.75])
    assert cap_logits(logits, None) is None
    assert logits.tolist() == pytest.approx([0.0, 1.0])

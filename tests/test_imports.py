"""Who may import whom: the arrows between the rooms of align/."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "align"
MAY_IMPORT: dict[str, set[str]] = {
    "batches": set(),
    "objectives": set(),
    "tokenizer": set(),
    "sandbox": set(),
    "model": {"objectives"},
    "adapters": {"model"},
    "generation": {"model", "adapters", "tokenizer"},
    "io": {"model", "adapters", "tokenizer"},
    "data": {"tokenizer"},
    "rewards": {"model", "io", "generation", "sandbox", "tokenizer"},
    "training": {"model", "adapters", "io"},
    "algorithms": {"tokenizer", "objectives", "model", "adapters", "generation", "io", "rewards", "training"},
    "callbacks": {"tokenizer", "model", "adapters", "generation", "io", "rewards", "training"},
    "compare": {"tokenizer", "objectives", "model", "generation", "io", "rewards"},
    "export": {"tokenizer", "model", "adapters", "io", "generation"},
    "serve": {"tokenizer", "model", "generation", "io"},
}
EVERYBODY_MAY = {"batches"}
# Imports nothing of align itself, so that every room can write its files whole.
ATOMIC = "align.io.atomic"
FREE = {"cli", "__main__", "__init__"}
NEVER = {"transformers", "tokenizers", "tiktoken", "trl"}
# Reads what was exported as its users will, which only their library can.
EXCEPT = {"export/verify_transformers.py": {"transformers"}}


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: Path):
    room = _room(path)
    imports = _imports(path)
    allowed = EXCEPT.get(path.relative_to(ROOT).as_posix(), set())
    assert not {name.split(".")[0] for name in imports} & (NEVER - allowed), "only tests compare with these"
    rooms = {name.split(".")[1] for name in imports - {ATOMIC} if name.startswith("align.")}
    if path == ROOT / "io/atomic.py":
        assert not rooms
    if room not in FREE:
        assert rooms - {room} - EVERYBODY_MAY <= MAY_IMPORT[room]
    if room != "__main__":
        assert room in FREE or "cli" not in rooms


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("align", {"torch", "lightning", "numpy"}),
        ("align.cli", {"torch", "lightning", "jsonargparse"}),
        ("align.tokenizer", {"torch", "datasets"}),
        ("align.sandbox", {"torch", "datasets"}),
        ("align.data", {"torch", "lightning", "datasets"}),
        ("align.model.config", {"torch"}),
        ("align.generation.sampling_config", {"torch"}),
    ],
)
def test_imports_stay_light(module: str, heavy: set[str]):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {heavy!r}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []

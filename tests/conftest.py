"""What holds for every test: a skip that nobody expected is a failure."""

import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

# The tests of every folder share another_device.py, naming.py and peers.py.
sys.path.insert(0, str(Path(__file__).parent))

# A machine with neighbours is no reason to fail.
hypothesis.settings.register_profile("align", deadline=None)
hypothesis.settings.load_profile("align")

EXPECTED_SKIPS = (
    "needs a GPU",
    "needs ../shared",
    "needs chromium",
    "needs libmagic",
    "needs vLLM",
    "this system grants no",
)
"""Beginnings of the reasons for which a test may be skipped."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_UnexpectedSkips(), "unexpected-skips")


class _UnexpectedSkips:
    def __init__(self) -> None:
        self.found: list[str] = []

    def _look(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(EXPECTED_SKIPS):
            self.found.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look(report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.found:
            terminalreporter.write_line(f"UNEXPECTED SKIP {line}", red=True)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """An empty folder into which the repository's files were copied, and `make demo` there, as a stranger would run it.

    It takes a quarter of an hour: for slow tests only.
    """
    root, folder = Path(__file__).resolve().parents[1], tmp_path_factory.mktemp("demo")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target)
    return folder, subprocess.run(["make", "demo"], cwd=folder, capture_output=True, text=True, timeout=1400)


@pytest.fixture
def demo(demo_run: tuple[Path, "subprocess.CompletedProcess[str]"]) -> Path:
    """The folder of ``demo_run``."""
    folder, result = demo_run
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.fixture
def exact_norms(monkeypatch):
    """Float64 norms in float64: by default they are computed in float32, as transformers computes them."""
    from align.model.layers import RMSNorm

    monkeypatch.setattr(RMSNorm, "exact", True)


@pytest.fixture
def network_of(exact_norms):
    """Build a float64 network in evaluation mode whose every parameter matters, so that equal means equal."""
    import torch

    from align.model import GPT, GPTConfig

    def build(**settings):
        sizes = {"vocab_size": 61, "layers": 2, "heads": 4, "width": 32, "ff_width": 24, "context": 48}
        network = GPT(GPTConfig(**sizes | {"init_std": 0.3, "embedding_std": 0.5} | settings)).double().eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() == 1:  # norms and biases away from 1 and 0
                    parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
        return network

    return build


@pytest.fixture
def tokens():
    """Draw token ids of the given shape below 61."""
    import torch

    def draw(*shape, seed=0):
        return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(seed))

    return draw

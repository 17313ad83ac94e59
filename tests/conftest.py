"""What holds for every test: a skip that nobody expected is a failure."""

import sys
from pathlib import Path

import hypothesis
import pytest

# The tests of every folder share another_device.py.
sys.path.insert(0, str(Path(__file__).parent))

# A machine with neighbours is no reason to fail.
hypothesis.settings.register_profile("align", deadline=None)
hypothesis.settings.load_profile("align")

EXPECTED_SKIPS = ("needs a GPU", "needs ../shared", "needs chromium")
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

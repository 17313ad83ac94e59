"""The guard against silent skips guards."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    ("reason", "code"), [("needs a GPU", 0), ("needs ../shared/data", 0), ("no time", pytest.ExitCode.TESTS_FAILED)]
)
def test_only_expected_skips_pass(pytester: pytest.Pytester, reason: str, code: int):
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text())
    pytester.makepyfile(
        f"import pytest\ndef test_a(): pass\n@pytest.mark.skip(reason={reason!r})\ndef test_b(): pass\n"
    )
    assert pytester.runpytest_inprocess().ret == code

"""Headless Chromium for the tests of pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium chromium-driver")
CONTRAST = (Path(__file__).parent / "compare/contrast.js").read_text(encoding="utf-8")
"""Returns the texts of a page whose contrast is below 4.5"""
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-prefers-reduced-motion",
    "--window-size=1200,900",
)


@contextmanager
def open_browser(profile: Path) -> Iterator[Any]:
    """Start Chromium with its console and its requests logged.

    Args:
        profile: an empty folder.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    driver = shutil.which("chromedriver")
    assert driver, "chromium is here and its driver is not: apt-get install chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Without it the client asks a local proxy, where one is set, for the driver's own port.
    os.environ.setdefault("NO_PROXY", "localhost,127.0.0.1")
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


def look(browser: Any, *, width: int = 1200, media: str = "", scheme: str = "light") -> None:
    """Set the width of the window, the medium and the colour scheme."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})

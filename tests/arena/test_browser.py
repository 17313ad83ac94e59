"""The arena in headless Chromium: votes by key and by mouse, on a phone, and what the votes become."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from chromium import CONTRAST, look, needs_chromium, open_browser

from align.arena.rounds import Arena
from align.arena.server import make_app
from align.arena.votes import FEEDBACK, PREFERENCES, Vote, preferences_of
from align.cli import main
from align.cli.serving import free_address

pytestmark = needs_chromium

EVIL = "<img src=x onerror='window.broken = 1'>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@contextmanager
def serving(arena: Arena) -> Iterator[str]:
    """The address of an arena that is served in a thread."""
    loop, runner = asyncio.new_event_loop(), web.AppRunner(make_app(arena, host="127.0.0.1"), shutdown_timeout=1)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    address = free_address("127.0.0.1", 0)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, address.host, address.port).start()

    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result(60)
        yield address.url
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def wait(page: Any, condition: str) -> Any:
    """Until a JavaScript expression is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page, 60, 0.05).until(lambda _: page.execute_script(f"return {condition}"), condition)


def ask(page: Any, prompt: str | None = None) -> None:
    """Send a prompt with the keyboard, and wait for both responses; None: the suggested prompt."""
    from selenium.webdriver.common.keys import Keys

    wait(page, "document.activeElement.id === 'prompt'")
    page.switch_to.active_element.send_keys(*([prompt] if prompt else []), Keys.ENTER)
    wait(page, "document.querySelector('#votes button:enabled')")


def press(page: Any, key: str) -> None:
    page.switch_to.active_element.send_keys(key)


def shown(page: Any, name: str) -> str:
    return page.find_element("id", name).text


def go_on(page: Any) -> None:
    """The button for the next prompt has the focus after a vote."""
    from selenium.webdriver.common.keys import Keys

    wait(page, "document.activeElement.id === 'next'")
    press(page, Keys.ENTER)


def tab_through(page: Any) -> list[str]:
    """The controls that Tab reaches, by id, vote or role; each shows that it has the focus."""
    from selenium.webdriver.common.keys import Keys

    reached: list[str] = []
    page.execute_script("document.getElementById('round-title').focus()")
    while reached[-1:] != ["keys"] and len(reached) < 20:
        press(page, Keys.TAB)
        name, outline = page.execute_script(
            "const at = document.activeElement;"
            "return [at.id || at.dataset.vote || at.getAttribute('role'), getComputedStyle(at).outlineStyle]"
        )
        assert outline == "solid", name
        reached.append(name)
    return reached


def width(page: Any) -> int:
    return page.execute_script("return document.documentElement.scrollWidth")


def test_votes_by_key_and_by_mouse(browser: Any, make_arena: Callable[..., Arena]):
    arena = make_arena(prompts=["suggested"], system="s")
    with serving(arena) as url:
        look(browser)
        browser.get_log("performance")
        browser.get_log("browser")
        browser.get(url)
        # 1. By key; nothing in the round tells the names before.
        ask(browser)
        blind = browser.page_source.partition("<tbody")[0]
        assert not [each.model.name for each in arena.models if each.model.name in blind]
        assert tab_through(browser) == ["left", "right", "tie", "both_bad", "skip", "region", "keys"]
        press(browser, "a")
        go_on(browser)
        # 2. Keys are off: the mouse is left. The prompt is hostile.
        browser.find_element("id", "own").click()
        browser.find_element("id", "keys").click()
        browser.find_element("id", "prompt").click()
        ask(browser, EVIL)
        browser.find_element("id", "round-title").click()
        press(browser, "b")
        browser.find_element("css selector", "[data-vote=tie]").click()
        wait(browser, "document.activeElement.id === 'next'")
        assert [vote.vote for vote in arena.files.votes] == ["left", "tie"]
        first, last = arena.files.votes
        assert [message["content"] for message in first.prompt] == ["s", "suggested"]
        assert [message["content"] for message in last.prompt] == ["s", EVIL]
        assert shown(browser, "asked") == EVIL
        assert browser.execute_script("return window.broken") is None
        # 3. Now they are told, and the table follows.
        for side in ("left", "right"):
            name = getattr(last, side).model
            assert name in shown(browser, f"{side}-title")
            assert name in shown(browser, "status")
        cells = browser.execute_script("return [...document.querySelectorAll('#rows td')].map((td) => td.textContent)")
        assert cells[2] == "2"
        assert cells[4] == "1"
        # 4. In both schemes all texts have contrast; on a phone nothing is wider than the window.
        for scheme in ("light", "dark"):
            look(browser, scheme=scheme)
            assert browser.execute_script(CONTRAST) == []
        look(browser, width=360)
        assert width(browser) == 360
        browser.find_element("id", "next").click()
        ask(browser)
        assert width(browser) == 360
        browser.find_element("css selector", "[data-vote=both_bad]").click()
        wait(browser, "document.activeElement.id === 'next'")
        assert arena.files.votes[-1].vote == "both_bad"
        # 5. All requests went to the arena, and none failed.
        asked = [
            json.loads(entry["message"])["message"]["params"]["request"]["url"]
            for entry in browser.get_log("performance")
            if '"Network.requestWillBeSent"' in entry["message"]
        ]
        assert [each for each in asked if not each.startswith((url, "chrome:", "data:"))] == []
        assert browser.get_log("browser") == []
        # 6. What is wrong is said in words.
        browser.find_element("id", "next").click()
        wait(browser, "document.activeElement.id === 'prompt'")
        press(browser, "a" * 99 + "\n")
        wait(browser, "document.getElementById('error').textContent.includes('tokens')")
        assert shown(browser, "send") == "Send"


def train(stage: str, model: Path, data: dict[str, Any], out: Path, **settings: Any) -> Path:
    """Two steps of a stage on a file of the arena; the model directory that it leaves."""
    recipe = {
        "seed_everything": 0,
        "trainer": {
            "default_root_dir": str(out),
            "accelerator": "cpu",
            "max_steps": 2,
            "enable_progress_bar": False,
            "logger": False,
        },
        "model": {
            "class_path": f"align.algorithms.{stage}",
            "init_args": {"init_from": str(model), "schedule": {"warmup_steps": 0}} | settings,
        },
        "data": {
            "class_path": data["class_path"],
            "init_args": {
                "tokenizer": str(model),
                "train": [data["file"]],
                "validation": [data["file"]],
                "context": 96,
                "batch_size": 4,
                "cache_dir": str(out / "cache"),
            },
        },
    }
    out.mkdir()
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["fit", "--config", str(out / "recipe.yaml")]) == 0
    return out / "model"


@pytest.mark.slow
def test_thirty_votes_become_a_reward_model_and_a_dpo_run(
    browser: Any, make_arena: Callable[..., Arena], directories: dict[str, Path], tmp_path: Path
):
    arena = make_arena(prompts=[f"prompt {number}" for number in range(30)])
    keys = ("a", "b", "a", "b", "x", "t")
    with serving(arena) as url:
        look(browser)
        browser.get(url)
        for number in range(30):
            ask(browser)
            press(browser, keys[number % len(keys)])
            go_on(browser)
    votes: list[Vote] = arena.files.votes
    assert len(votes) == 30
    pairs = [pair for vote in votes for pair in preferences_of(vote)]
    folder = arena.files.folder
    assert len((folder / PREFERENCES).read_text().splitlines()) == len(pairs) > 10
    preferences = {"class_path": "align.data.PreferenceData", "file": str(folder / PREFERENCES)}
    feedback = {"class_path": "align.data.FeedbackData", "file": str(folder / FEEDBACK)}
    start = directories["aardvark"]
    reward = train("Reward", start, preferences, tmp_path / "reward")
    dpo = train("DPO", start, preferences, tmp_path / "dpo")
    kto = train("KTO", start, feedback, tmp_path / "kto")
    for model in (reward, dpo, kto):
        assert (model / "config.json").is_file()
        assert json.loads((model / "align.json").read_text())["data"]

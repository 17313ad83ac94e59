"""The HTML report in headless Chromium: nothing is fetched, it fits a phone, and a keyboard is enough."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import CONTRAST, look, needs_chromium, open_browser

from align.compare.html import write_html

pytestmark = needs_chromium

EVIL = "<script>window.broken = 1</script><img src=x onerror='window.broken = 2'> a rare zebra"
FOCUSED = """
const at = document.activeElement;
return [at.id || at.className || at.tagName, getComputedStyle(at).outlineStyle];
"""
NAMED = """
return [...document.querySelectorAll("svg:not([aria-hidden=true])")].map((svg) => {
  const words = svg.getAttribute("aria-labelledby").split(" ").map((id) => document.getElementById(id).textContent);
  return [svg.getAttribute("role"), words];
});
"""
OUTSIDE = """
return [...document.querySelectorAll("svg.chart")].flatMap((svg) => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter((text) => {
    const at = text.getBoundingClientRect();
    return at.left < box.left || at.right > box.right + 1 || at.top < box.top || at.bottom > box.bottom;
  }).map((text) => text.textContent);
})
"""
SMALLEST = """
const texts = [...document.querySelectorAll("svg.chart text")];
return Math.min(...texts.map((text) => text.getBoundingClientRect().height));
"""
Make = Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def pages(make_report: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of a small report with hostile text, and of one of eight models with long names."""
    folder: Path = tmp_path_factory.mktemp("pages")
    report, rows = make_report(n=3)
    rows[5]["prompt"] = EVIL
    rows[6]["responses"]["ppo"][2] |= {
        "text": EVIL.replace("zebra", "quagga"),
        "rewards": {"gold": 9.0, "reward": -9.0},
    }
    rows[7]["responses"]["dpo"][0] |= {"text": "", "rewards": {"gold": -9.0, "reward": 0.0}}
    (folder / "small.html").write_text(write_html(report, rows), encoding="utf-8")
    names = ("sft", *(f"a model with a long name {i}" for i in range(6)), "unbroken" * 6)
    (folder / "large.html").write_text(
        write_html(*make_report(names, prompts=25, best_of=True, texts=True)), encoding="utf-8"
    )
    return {path.stem: path.as_uri() for path in folder.iterdir()}


@pytest.fixture
def page(browser: Any, pages: dict[str, str]) -> Any:
    """The browser at the small report, as wide as a desk's, in light colours."""
    look(browser)
    browser.get(pages["small"])
    return browser


def _count(page: Any) -> int:
    return page.execute_script("return document.querySelectorAll('#cards .card').length")


def _numbers(page: Any, selector: str) -> list[int]:
    """The numbers in the text of the first element that a selector finds."""
    return page.execute_script(
        "return (document.querySelector(arguments[0]).textContent.match(/\\d+/g) || []).map(Number)", selector
    )


def _wait(page: Any, *counts: int) -> None:
    """Until the status begins with these counts."""
    from selenium.webdriver.support.ui import WebDriverWait

    def reached(_: Any) -> bool:
        return _numbers(page, "#count")[: len(counts)] == [*counts]

    WebDriverWait(page, 30).until(reached, f"the counts are {_numbers(page, '#count')}")


def _choose(page: Any, name: str, text: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(page.find_element("id", name)).select_by_visible_text(text)


def _choose_value(page: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(page.find_element("id", name)).select_by_value(value)


def _shown(page: Any, selector: str) -> bool:
    return page.find_element("css selector", selector).is_displayed()


def test_nothing_is_fetched_and_nothing_goes_wrong(browser: Any, pages: dict[str, str]):
    browser.get_log("performance")
    browser.get(pages["small"])
    sent = [entry for entry in browser.get_log("performance") if '"Network.requestWillBeSent"' in entry["message"]]
    # A slow browser logs the page of its first tab only now.
    asked = [entry for entry in sent if '"documentURL":"chrome://' not in entry["message"]]
    assert len(asked) == 1, "the page itself"
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []


def test_hostile_text_is_inert(page: Any):
    page.find_element("id", "query").send_keys("a rare")
    _wait(page, 2, 30)
    for more in page.find_elements("css selector", "#cards summary"):
        more.click()
    assert page.execute_script("return window.broken") is None
    assert page.find_elements("css selector", "img") == []
    assert EVIL in page.find_element("css selector", "#cards .prompt").text
    assert page.get_log("browser") == []


def test_the_search_narrows_and_marks(page: Any):
    assert _numbers(page, "#count") == [30, 20]
    page.find_element("id", "query").send_keys("QUAGGA")
    _wait(page, 1, 30)
    assert _count(page) == 1
    assert page.find_element("css selector", "#cards mark").text == "quagga"
    assert _numbers(page, "#cards .where") == [7, 3]
    page.find_element("id", "query").send_keys(" and nothing else")
    _wait(page, 0, 30)
    assert _count(page) == 0
    assert not _shown(page, "#more")


def test_best_worst_and_most_different(page: Any):
    """ppo's third response to prompt 7 has gold 9 and reward -9, dpo's first to prompt 8 gold -9, others nearly 0."""

    def first() -> list[int]:
        return _numbers(page, "#cards .where")

    assert not _shown(page, "#measure")
    _choose_value(page, "order", "best")
    _choose(page, "first", "ppo")
    assert first() == [7, 3]
    assert not _shown(page, "#second")
    _choose_value(page, "order", "worst")
    _choose(page, "first", "dpo")
    assert first() == [8, 1]
    assert page.find_elements("css selector", "#cards .card:first-child .text.empty")
    _choose_value(page, "order", "different")
    _choose(page, "first", "ppo")
    _choose(page, "second", "sft")
    _choose(page, "measure", "reward")
    assert first() == [7, 3]
    _choose_value(page, "measure", "2")  # the length, after two judges
    assert _count(page) == 20


def test_a_keyboard_is_enough(page: Any):
    from selenium.webdriver.common.keys import Keys

    reached: list[str] = []
    page.find_element("tag name", "body").send_keys(Keys.TAB)
    while reached[-1:] != ["more"] and len(reached) < 100:
        name, outline = page.execute_script(FOCUSED)
        reached.append(name)
        assert outline == "solid", f"no focus is seen on {name}"
        keys = {"SUMMARY": [Keys.ENTER], "query": ["garden"], "order": [Keys.ARROW_DOWN], "more": []}.get(name, [])
        page.switch_to.active_element.send_keys(*keys, *([] if name == "more" else [Keys.TAB]))
    assert reached[0] == "skip"
    order = ("query", "order", "measure", "first", "more")
    assert tuple(name for name in reached if name in order) == order
    assert page.execute_script("return document.querySelectorAll('details[open]').length") > 1
    _wait(page, 30, 30)
    before = _count(page)
    page.switch_to.active_element.send_keys(Keys.SPACE)
    assert _count(page) > before
    assert page.execute_script(FOCUSED)[0] == "card", "the first of the new ones has the focus"


def test_a_phone_shows_the_page_without_scrolling_sideways(browser: Any, pages: dict[str, str]):
    look(browser, width=360)
    browser.get(pages["large"])
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    assert browser.execute_script(SMALLEST) > 9


def test_light_dark_and_print(page: Any):
    """Lightness 0 to 255 of the page and of its text, the mean of red, green and blue."""

    def lightness() -> tuple[float, float]:
        body = "getComputedStyle(document.body)"
        colours = page.execute_script(
            f"return [{body}.backgroundColor, {body}.color].map((c) => c.match(/\\d+/g).map(Number))"
        )
        return tuple(sum(colour[:3]) / 3 for colour in colours)

    paper, ink = lightness()
    assert paper > 240 > 60 > ink
    look(page, scheme="dark")
    paper, ink = lightness()
    assert paper < 40 < 200 < ink
    look(page, media="print", scheme="dark")
    paper, ink = lightness()
    assert paper > 240 > 60 > ink
    assert not _shown(page, "nav")
    assert not _shown(page, "#explorer")
    assert _shown(page, "#verdict")
    assert _shown(page, "#samples .card")
    assert page.execute_script("return document.querySelector('#settings table').checkVisibility()")


def test_without_scripts_the_page_still_shows_samples(browser: Any, pages: dict[str, str]):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(pages["small"])
        root = browser.execute_cdp_cmd("DOM.getDocument", {})["root"]["nodeId"]

        def found(selector: str) -> int:
            return len(
                browser.execute_cdp_cmd("DOM.querySelectorAll", {"nodeId": root, "selector": selector})["nodeIds"]
            )

        assert found("#samples > .card") >= 6
        assert found("#explorer[hidden]") == 1
        assert found("#cards .card") == 0
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_every_text_has_contrast(page: Any):
    """WCAG 2: a ratio of at least 4.5 between a text's colour and what is behind it, in light and in dark."""
    for scheme in ("light", "dark"):
        look(page, scheme=scheme)
        assert page.execute_script(CONTRAST) == []


def test_pictures_have_words_and_lie_within_their_frames(browser: Any, pages: dict[str, str]):
    look(browser)
    browser.get(pages["large"])
    named = browser.execute_script(NAMED)
    assert len(named) == 3
    assert all(role == "img" and all(words) for role, words in named)
    assert browser.execute_script(OUTSIDE) == []

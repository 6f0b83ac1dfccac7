"""The page in a real browser: it talks, draws the cache, fits a phone, and can be used by keyboard."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait
from servers import ALIAS, Running, running

from stratakv.serve.request import Limits, Loss

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FILES = Path(__file__).parents[3] / "stratakv" / "serve" / "web"
browser_needed = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium and chromedriver here (Debian: chromium, chromium-driver)"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One whose answers can be so long that a person sees them being written: 600 tokens are there within a second."""
    with running(limits=Limits(slots=4, context=8192, cache_bytes=32 * 2**20)) as started:
        yield started


@contextmanager
def browser(width: int = 1280, height: int = 820) -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.binary_location = str(BROWSER)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield driver
    finally:
        driver.quit()


def until(driver: WebDriver, condition: Callable[[WebDriver], object], seconds: float = 60) -> None:
    WebDriverWait(driver, seconds, poll_frequency=0.05).until(condition)


def text(driver: WebDriver, id_: str) -> str:
    return driver.find_element(By.ID, id_).text


@browser_needed
def test_a_conversation_by_keyboard(server):
    with browser() as driver:
        driver.get(server.url)
        until(driver, lambda d: text(d, "state-text") == "ready")
        assert text(driver, "model") == ALIAS and "turbo4" in text(driver, "profile")
        rows = driver.find_elements(By.CSS_SELECTOR, "#layers tr")
        kind = "turbo4\n4.13 bits a value"
        assert [row.text for row in rows] == [f"{kind}\n{i}\n{kind}" for i in range(12)]
        bars = driver.find_elements(By.CSS_SELECTOR, "#layers .fill")
        assert len(bars) == 24 and all(bar.size["width"] > 10 for bar in bars)

        assert driver.switch_to.active_element.get_attribute("id") == "prompt"  # ready to be written in
        driver.execute_script(
            "document.getElementById('max-tokens').value = 8000; document.getElementById('temperature').value = 0"
        )
        keys = webdriver.ActionChains(driver)
        keys.send_keys("Who goes").key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).send_keys(
            "there?"
        ).perform()
        driver.switch_to.active_element.send_keys(Keys.ENTER)
        until(driver, lambda d: text(d, "running") == "1" and "working" in text(d, "state-text"))
        assert re.search(r"[1-9]\d* used", text(driver, "pages"))
        assert re.search(r"\d+ tokens, \d+ new|reading", text(driver, "slots"))
        until(driver, lambda d: len(d.find_element(By.CSS_SELECTOR, ".assistant .text").text) > 10)
        webdriver.ActionChains(driver).send_keys(Keys.ESCAPE).perform()
        until(driver, lambda d: "stopped" in d.find_element(By.CSS_SELECTOR, ".assistant .facts").text)
        server.wait_idle()
        assert driver.find_element(By.CSS_SELECTOR, ".user .text").text == "Who goes\nthere?"
        assert driver.switch_to.active_element.get_attribute("id") == "prompt"

        driver.execute_script("document.getElementById('max-tokens').value = 5")
        driver.switch_to.active_element.send_keys("Go on." + Keys.ENTER)
        until(driver, lambda d: "5 tokens" in d.find_elements(By.CSS_SELECTOR, ".assistant")[1].text)
        driver.find_element(By.ID, "clear").send_keys(Keys.ENTER)
        assert not driver.find_elements(By.CSS_SELECTOR, ".message")
        assert driver.get_log("browser") == []


WATCH = """
window.changes = [];
new MutationObserver(() => window.changes.push(performance.now())).observe(
  document.getElementById("log"), {childList: true, subtree: true, characterData: true});
document.getElementById('max-tokens').value = 600;
document.getElementById('temperature').value = 0;
"""


@browser_needed
def test_the_page_is_not_laid_out_for_every_token(server):
    """Doing so froze it, and Escape with it: 150 s for 8,000 tokens beside other programs."""
    with browser() as driver:
        driver.get(server.url)
        until(driver, lambda d: text(d, "state-text") == "ready")
        driver.execute_script(WATCH)
        driver.switch_to.active_element.send_keys("Who goes there?" + Keys.ENTER)
        until(driver, lambda d: d.find_elements(By.CSS_SELECTOR, ".assistant .facts"))
        changes = driver.execute_script("return window.changes")
        assert len(changes) <= 5 + (changes[-1] - changes[0]) / 50  # the bubbles, and one every 50 ms
        assert len(driver.find_element(By.CSS_SELECTOR, ".assistant .text").text) > 100


def accessible(driver: WebDriver) -> list[dict[str, Any]]:
    """What a screen reader gets: role, name, and the properties that browsers give, in the order of the page."""
    nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return [
        {
            "role": node["role"]["value"],
            "name": node.get("name", {}).get("value", ""),
            **{each["name"]: each["value"].get("value") for each in node.get("properties", ())},
        }
        for node in nodes
        if not node["ignored"]
    ]


@browser_needed
def test_a_screen_reader_finds_everything(server):
    with browser() as driver:
        driver.get(server.url)
        until(driver, lambda d: d.find_elements(By.CSS_SELECTOR, "#layers tr"))
        driver.find_element(By.CSS_SELECTOR, "summary").send_keys(Keys.ENTER)
        nodes = accessible(driver)
        controls = {(node["role"], node["name"]) for node in nodes if node.get("focusable")}
        assert controls == {
            ("RootWebArea", f"{ALIAS} · stratakv"),
            ("link", "Skip to the message field"),
            ("group", "Conversation"),
            ("textbox", "Message"),
            ("DisclosureTriangle", "Options"),
            ("spinbutton", "Temperature"),
            ("spinbutton", "New tokens at most"),
            ("textbox", "System message"),
            ("button", "New chat"),
            ("button", "Send"),
            ("region", "Layers and their types"),
        }
        # the picture of the cache in words
        named = {(node["role"], node["name"]) for node in nodes}
        assert ("table", "The type of K and of V in every layer that has a cache") in named
        assert ("cell", "turbo4 4.13 bits a value") in named and ("rowheader", "11") in named
        images = [node["name"] for node in nodes if node["role"] == "image"]
        assert len(images) == 2 and images[0].startswith("Tokens a second: now ")
        assert re.match(r"\d+ used ?\d+ kept for prefixes ?\d+ free", images[1])
        assert driver.find_element(By.CSS_SELECTOR, "#slots li").text.split() == ["Slot", "0", "idle"]

        # an answer is said in sentences while it is written
        driver.execute_script("document.getElementById('temperature').value = 0")
        driver.execute_script(
            "window.said = []; new MutationObserver((all) => all.forEach((one) => one.addedNodes.forEach((node) =>"
            " window.said.push(node.textContent)))).observe(document.getElementById('announce'), {childList: true})"
        )
        driver.find_element(By.ID, "prompt").send_keys("Who goes there?" + Keys.ENTER)
        until(driver, lambda d: d.find_elements(By.CSS_SELECTOR, ".assistant .facts"))
        said = driver.execute_script("return window.said")
        answer = driver.find_element(By.CSS_SELECTOR, ".assistant .text").text
        assert len(said) > 2 and " ".join(said).split() == answer.split()
        assert max(map(len, said)) < 230
        nodes = accessible(driver)
        (log,) = [node for node in nodes if node["role"] == "log"]
        assert (log["live"], log["atomic"], log["name"]) == ("polite", False, "New text")
        assert [node["name"] for node in nodes if node["role"] == "article"] == ["You", "Model"]


@browser_needed
def test_the_focus_goes_through_all_controls_and_is_seen(server):
    with browser() as driver:
        driver.get(server.url)
        until(driver, lambda d: text(d, "state-text") == "ready")
        while driver.switch_to.active_element.get_attribute("class") != "skip":  # the first of all
            webdriver.ActionChains(driver).send_keys(Keys.TAB).perform()
        order = []
        for _ in range(7):
            name, outline = driver.execute_script(
                "const e = document.activeElement, shown = e.id === 'prompt' ? e.form : e;"
                "return [e.id || e.className || e.tagName, getComputedStyle(shown).outline]"
            )
            assert "solid 2px" in outline, (name, outline)
            order.append(name)
            webdriver.ActionChains(driver).send_keys(Keys.TAB).perform()
        assert order == ["skip", "log", "prompt", "SUMMARY", "clear", "send", "layers"]
        driver.find_element(By.CSS_SELECTOR, ".skip").send_keys(Keys.ENTER)
        assert driver.switch_to.active_element.get_attribute("id") == "prompt"


@browser_needed
@pytest.mark.parametrize("width", [320, 390])
def test_on_a_phone_nothing_is_cut_off(server, width):
    with browser(width, 844) as driver:
        driver.get(server.url)
        until(driver, lambda d: text(d, "state-text") == "ready")
        assert driver.execute_script("return document.documentElement.scrollWidth") == width
        for button in driver.find_elements(By.CSS_SELECTOR, "button"):
            if button.is_displayed():
                assert button.size["height"] >= 40  # for fingers
        rect = driver.find_element(By.ID, "composer").rect
        assert rect["y"] + rect["height"] <= 844
        driver.execute_script("document.querySelector('.layers').scrollIntoView()")
        assert driver.find_element(By.ID, "layers").is_displayed()


@browser_needed
def test_colours_differ_enough_in_light_and_dark(server):
    """WCAG's contrast with what is behind: texts 4.5 at least, the edges of fields 3."""
    ratio = """
        const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map((v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 }); return .2126 * r + .7152 * g + .0722 * b };
        const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!c.startsWith('rgba(0, 0, 0, 0')) return c } return 'rgb(255, 255, 255)' };
        const ratio = (c, d) => { const [a, b] = [light(c), light(d)]; return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) };
        const worst = (pairs) => pairs.sort((a, b) => a[0] - b[0])[0];
        const texts = [...document.querySelectorAll('h1, h2, h3, p, dt, dd, button, label, summary, th, td, li span, input')];
        const edges = [...document.querySelectorAll('input, .composer')];
        return [worst(texts.filter((e) => e.checkVisibility() && (e.value || e.textContent.trim())).map((e) => [ratio(getComputedStyle(e).color, behind(e)), e.textContent.trim()])),
          worst(edges.filter((e) => e.checkVisibility()).map((e) => [ratio(getComputedStyle(e).borderTopColor, behind(e.parentElement)), e.id]))];
    """  # noqa: E501
    with browser() as driver:
        for scheme in ("light", "dark"):
            driver.execute_cdp_cmd(
                "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            )
            driver.get(server.url)
            until(driver, lambda d: text(d, "state-text") == "ready")
            driver.find_element(By.CSS_SELECTOR, "summary").click()
            worst, edge = driver.execute_script(ratio)
            assert worst[0] >= 4.5 and edge[0] >= 3, (scheme, worst, edge)


@browser_needed
def test_what_is_lost_is_said_with_its_reason(server, monkeypatch):
    with browser() as driver:
        driver.get(server.url)
        until(driver, lambda d: text(d, "state-text") == "ready")
        assert not driver.find_element(By.ID, "lost").is_displayed()
        lost = Loss("batching", "layer 0: a state <b>of</b> constant size")
        monkeypatch.setattr(server.engine, "lost", (lost,))
        until(driver, lambda d: d.find_element(By.ID, "lost").is_displayed())
        assert text(driver, "lost") == f"no batching\n{lost.why}"


@browser_needed
def test_a_server_with_a_key_asks_for_it():
    with running(api_keys=("secret",)) as server, browser() as driver:
        driver.get(server.url)
        until(driver, lambda d: d.find_element(By.ID, "key").is_displayed())
        driver.find_element(By.ID, "key").send_keys("guess" + Keys.ENTER)
        until(
            driver,
            lambda d: "not the server's" in text(d, "state-text") and d.find_element(By.ID, "key").is_displayed(),
        )
        driver.find_element(By.ID, "key").clear()
        driver.find_element(By.ID, "key").send_keys("secret" + Keys.ENTER)
        until(driver, lambda d: text(d, "state-text") == "ready")
        assert not driver.find_element(By.ID, "key").is_displayed()


def test_the_page_needs_no_network():
    for path in FILES.iterdir():
        addresses = re.findall(r"https?://[^\s\"'<>]+", path.read_text(encoding="utf-8"))
        assert [a for a in addresses if not a.startswith("http://www.w3.org/")] == [], path.name


def test_the_page_stays_a_page(server):
    answer = httpx.get(server.url)
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    for name in re.findall(r'(?:href|src)="(/web/[^"]+)"', answer.text):
        assert httpx.get(server.url + name).status_code == 200, name
    end = time.monotonic() + 5
    status = httpx.get(f"{server.url}/stratakv/status").json()
    assert time.monotonic() < end and len(status["layers"]) == 12 and status["layers"][0]["k_bits"] == 4.125


SPANS = "0: f16; 1: q8_0/tcq4, first 0 pages; rest: turbo4; recent: 2 pages turbo8; first: 1 page turbo8"


def test_layers_say_their_family_and_the_bits_of_their_spans():
    with running(profile=SPANS) as server:
        layers = httpx.get(f"{server.url}/stratakv/status").json()["layers"]
    told = [tuple(layer[f"{s}_{w}"] for s in "kv" for w in ("family", "bits", "fine_bits")) for layer in layers[:3]]
    assert told == [
        ("float", 16, None, "float", 16, None),
        ("block", 8.5, 8.5, "trellis", 4.125, 8.125),  # a side that is as fine keeps its own type
        ("turbo", 4.125, 8.125, "turbo", 4.125, 8.125),
    ]


@browser_needed
def test_spans_are_drawn_in_pages_and_layers():
    with running(profile=SPANS) as server, browser() as driver:
        driver.get(server.url)
        until(driver, lambda d: d.find_elements(By.CSS_SELECTOR, "#layers tr"))
        rows = driver.find_elements(By.CSS_SELECTOR, "#layers tr")
        assert [row.get_attribute("title") for row in rows[:3]] == [
            "",
            "recent: 2 pages turbo8",
            "recent: 2 pages turbo8; first: 1 page turbo8",
        ]
        assert [len(row.find_elements(By.CSS_SELECTOR, ".fine")) for row in rows[:3]] == [0, 1, 2]
        full, own = (rows[i].find_element(By.CSS_SELECTOR, ".v .fill").size["width"] for i in (0, 2))
        fine = rows[2].find_element(By.CSS_SELECTOR, ".v .fine").size["width"]
        assert own / full == pytest.approx(4.125 / 16, abs=0.02) and fine / full == pytest.approx(0.25, abs=0.02)
        assert driver.find_element(By.ID, "outlined").is_displayed()
        colours = {
            rows[i].find_element(By.CSS_SELECTOR, f".{side} .fill").value_of_css_property("background-color")
            for i, side in ((0, "v"), (1, "k"), (1, "v"), (2, "v"))
        }
        assert len(colours) == 4  # float, block, trellis, turbo

        def bars() -> list[tuple[str, int]]:
            found = driver.find_elements(By.CSS_SELECTOR, "#bars > div")
            return [(bar.text, bar.find_element(By.CSS_SELECTOR, ".cached").size["width"]) for bar in found]

        assert bars() == [("whole", 0), ("fine", 0), ("sealed", 0)]
        prompt = {"prompt": "It was the best of times. " * 60, "n_predict": 1}
        assert httpx.post(f"{server.url}/completion", json=prompt, timeout=60).status_code == 200
        server.wait_idle()
        until(driver, lambda _: all(width > 0 for _, width in bars()))
        kinds = httpx.get(f"{server.url}/stratakv/status").json()["kinds"]
        for kind in kinds:
            assert f"{kind['kind']}: 0 used, {kind['cached']} kept, {kind['free']} free" in text(driver, "pages")


@browser_needed
def test_without_spans_there_is_one_bar_and_nothing_outlined(server):
    with browser() as driver:
        driver.get(server.url)
        until(driver, lambda d: d.find_elements(By.CSS_SELECTOR, "#layers tr"))
        assert [bar.text for bar in driver.find_elements(By.CSS_SELECTOR, "#bars > div")] == [""]
        assert not driver.find_element(By.ID, "outlined").is_displayed()
        assert not driver.find_elements(By.CSS_SELECTOR, "#layers .fine")

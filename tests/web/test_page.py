"""L5: the page in a real browser, Chromium without a window: writes, stops, weighs, colours."""

from __future__ import annotations

import dataclasses
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otter_export import ArgsGreedy, ArgsStochastic, Chat, generate, load_engine
from otter_export.evaluation.counting_engine import CountingEngine
from otter_export.manifest import EngineManifest
from otter_export.runtime.engine import Engine
from otter_export.runtime.request import Result
from tests.web.running import Server, serving, wait_for

pytestmark = pytest.mark.slow

#: Whatever of them a system has.
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
#: Of a token, by its reward (otter_export/web/page.html).
_RED, _GREEN = (215, 48, 39), (26, 152, 80)


class Slow(CountingEngine):
    """A step takes long enough to be stopped, and no token ends a text."""

    seconds = 0.0

    @property
    def manifest(self) -> EngineManifest:
        return dataclasses.replace(super().manifest, eos_token_ids=())

    def forward(self, *arguments: Any) -> Any:
        time.sleep(self.seconds)
        return super().forward(*arguments)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} is here; apt-get install chromium")
    with api.sync_playwright() as playwright:
        # As root, which containers are, Chromium has no sandbox.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def slow(engine_dir: Path) -> Slow:
    return Slow(load_engine(engine_dir, threads=1))


@pytest.fixture(scope="module")
def engine(engine_dir: Path) -> Engine:
    """The same without a server."""
    return Slow(load_engine(engine_dir, threads=1))


@pytest.fixture(scope="module")
def server(slow: Slow) -> Iterator[Server]:
    with serving(slow) as server:
        yield server


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page, of which nothing goes wrong and nothing asks elsewhere."""
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    page.wait_for_selector("#kinds:not([hidden])")
    page.fill("#prompt", "w20 w21")
    page.fill("#tokens", "12")
    yield page
    page.close()
    assert problems == []
    assert all(url.startswith(server.url) for url in asked)


def write(page: Any) -> None:
    page.click("#go")
    page.wait_for_selector("#stop:disabled")


def texts(page: Any, panel: int = 0) -> list[str]:
    tokens = page.locator("section").nth(panel).locator(".token")
    return [str(text) for text in tokens.all_text_contents()]


def check(page: Any, engine: Engine, expected: Result, panel: int) -> None:
    """Text and colours are those of a result."""
    assert "".join(texts(page, panel)) == expected.text
    script = "tokens => tokens.map(token => getComputedStyle(token).backgroundColor)"
    colors = page.locator("section").nth(panel).locator(".token").evaluate_all(script)
    for color, reward in zip(colors, expected.rewards, strict=True):
        red, green, blue, *alpha = map(float, re.findall(r"[\d.]+", color))
        assert (red, green, blue) == (_RED if reward < 0 else _GREEN)
        # A browser keeps a colour's strength in a byte, or with some digits.
        assert (alpha or [1.0])[0] == pytest.approx(abs(reward) ** 0.5 * 0.6, abs=0.005)
    facts = page.locator("section").nth(panel).locator(".facts").text_content()
    mean = sum(expected.rewards) / len(expected.rewards)
    assert f"mean reward {mean:.3f}, 12 tokens" in facts.replace("\u2212", "-")


def test_it_writes_in_colours_and_the_weight_changes_the_text(
    page: Any, engine: Engine, server: Server
) -> None:
    def expected(weight: float) -> Result:
        method = ArgsStochastic(weight=weight, top_k=8)
        return generate(engine, "w20 w21", method, max_tokens=12, seed=0)[0]

    write(page)
    check(page, engine, expected(4), 0)
    check(page, engine, expected(0), 1)
    before = texts(page)
    for _ in range(24):
        page.press("#weight", "ArrowRight")
    assert page.text_content("#shown") == "16"
    write(page)
    check(page, engine, expected(16), 0)
    assert texts(page) != before
    # One line a panel in the plot.
    assert page.locator("#plot polyline").count() == 2


def test_it_says_what_a_token_won_against(page: Any, engine: Engine) -> None:
    page.select_option("#method", "args-greedy")
    page.uncheck("#beside")
    write(page)
    assert page.locator("section").count() == 1
    result = generate(engine, "w20 w21", ArgsGreedy(weight=4, top_k=8), max_tokens=12)[0]
    page.locator(".token").nth(3).hover()
    tip = page.locator("#tip")
    assert tip.is_visible() and f"reward {result.rewards[3]:.3f}" in tip.text_content()
    assert tip.locator(".won td").first.text_content() == f'"w{result.token_ids[3]}"'
    page.locator("h1").hover()
    assert not tip.is_visible()


def test_it_stops(page: Any, server: Server, slow: Slow) -> None:
    cancelled = server.stats.cancelled
    page.fill("#tokens", "120")
    slow.seconds = 0.03
    try:
        page.click("#go")
        page.wait_for_selector("section:nth-child(2) .token:nth-child(5)")
        page.click("#stop")
        page.wait_for_selector("#go:enabled")
        wait_for(lambda: server.stats.cancelled == cancelled + 2)
    finally:
        slow.seconds = 0.0
    assert all("(stopped)" in text for text in page.locator(".facts").all_text_contents())
    assert len(texts(page)) < 100
    server.idle()


def test_it_chats(page: Any, engine: Engine) -> None:
    page.select_option("#kind", "chat")
    page.uncheck("#beside")
    write(page)
    method = ArgsStochastic(weight=4, top_k=8)
    expected = generate(engine, Chat.of("w20 w21"), method, max_tokens=12, seed=0)[0]
    assert "".join(texts(page)) == expected.text


def test_it_shows_what_is_wrong(browser: Any, server: Server) -> None:
    page = browser.new_page()  # the browser itself tells its console of a status 400
    page.goto(server.url)
    page.fill("#prompt", "w3 " * 200)
    write(page)
    assert "the prompt has 200 tokens" in page.locator(".facts .error").first.text_content()
    page.close()

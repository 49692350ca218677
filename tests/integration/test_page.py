"""The page in a real browser: who gets it, what it shows, on a phone and on a desk, by keyboard, in the dark."""

import asyncio
import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import Browser, Page, async_playwright, expect
from pydantic import SecretStr

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.ops.config.settings import HttpSettings
from ebbtide.ops.http.auth import SESSION, new_session
from ebbtide.ops.http.customers import Customers
from ebbtide.ops.http.server import HttpServer
from ebbtide.ops.page.live import Live
from ebbtide.ops.page.routes import PAGE, page_routes
from ebbtide.ops.stack.server import free_ports
from ebbtide.stream.clock import SystemClock
from tests.support.seams.answering import answering
from tests.support.seams.scoring import LAYOUT, ArithmeticModel
from tests.unit.ops.test_live import alert, turn

DAY_MS = 86_400_000
ODD = '<img src=x onerror="document.title=1">'
"""A customer who is called like this is text."""


def about() -> dict[str, Any]:
    return {"ready": True, "reasons": [], "model": "shop", "version": 7, "partitions": 4, "lag_s": 0.2}


@asynccontextmanager
async def served(token: str | None = None) -> AsyncIterator[tuple[str, Live]]:
    """A page's address, and what it shows."""
    clock, model, store = SystemClock(), ArithmeticModel(), MemoryStore(LAYOUT.dtype, 1)
    now_ms = clock.now_ms()
    events = EventBatch(
        ["ann", ODD], np.append(np.zeros(20, np.int32), 1).astype(np.int32), np.zeros(21, np.uint8),
        now_ms - np.append(np.arange(20, 0, -1), 1) * DAY_MS, np.full(21, np.nan), np.zeros(21, np.uint64),
        np.arange(21),
    )  # fmt: skip
    rows, _ = Folder(LAYOUT).fold(LAYOUT.empty(2), events)
    rows["score"], rows["scored_at"] = [[0.81], [0.7]], now_ms
    await store.apply(
        Commit(
            0,
            None,
            Checkpoint(21, 1, 0, LAYOUT.id, 1),
            ["ann", ODD],
            rows,
            Folder(LAYOUT).due(rows),
            at_risk=rows["score"][:, 0],
        )
    )

    live = Live("alerts", clock, about)
    settings = HttpSettings(port=0, token=SecretStr(token) if token else None)
    routes = [
        *Customers(LAYOUT, store, answering(model), clock).routes(),
        *page_routes(live, settings, clock),
    ]
    server = HttpServer(settings, routes)
    try:
        yield await server.start(), live
    finally:
        await server.stop()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    binary = shutil.which("chromium")
    if binary is None:
        pytest.fail("the page is tried in a real browser: apt-get install chromium")
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield opened
        await opened.close()


async def opened(browser: Browser, address: str, **how: Any) -> tuple[Page, list[str]]:
    """The page, and what the browser complains about."""
    page = await (await browser.new_context(**how)).new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    await page.goto(address)
    return page, wrong


async def test_the_page_is_live_and_shows_a_customer(browser: Browser) -> None:
    """Alerts come as they are sent, text stays text, and a click or a key shows who it is about."""
    async with served() as (address, live):
        page, wrong = await opened(browser, address, viewport={"width": 1200, "height": 900})
        await page.wait_for_selector("#status.ready")
        assert "model shop version 7 · 4 partitions" in await page.inner_text("#about")
        live.turn(turn(500, [0.1, 0.2, 0.9], [0.03]))
        live.sent([alert("ann", probability=0.81), alert(ODD)])
        await page.wait_for_selector("#alerts li:nth-child(2)")
        assert ODD in await page.inner_text("#alerts li:first-child") and await page.title() == "Ebbtide"
        assert "no visit for 9 days" in await page.inner_text("#alerts")
        await expect(page.locator("#worst li")).to_have_count(2)
        await expect(page.locator("#risk")).to_have_text("2")
        await expect(page.locator("#late")).to_have_text("30 ms")
        await page.get_by_role("button", name="ann", exact=True).first.focus()
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#who dl")
        assert "20 visits" in await page.inner_text("#who")
        await expect(page.locator("#curve path")).to_have_attribute("d", re.compile("^M"))
        assert (
            await page.get_by_role("img", name="Probability of leaving if nothing more is heard").count() == 1
        )
        await page.fill("#id", "nobody")
        await page.keyboard.press("Enter")
        await expect(page.locator("#who")).to_contain_text("nothing is known")
        assert [line for line in wrong if "404" not in line] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_a_phone_and_reads_in_both_schemes(browser: Browser, scheme: str) -> None:
    """Nothing is cut or scrolls sideways, and text stands out by 4.5 to 1 at least, as WCAG's AA asks."""
    async with served() as (address, live):
        live.sent([alert("a" * 120), alert("ann")])
        page, wrong = await opened(
            browser, address, viewport={"width": 360, "height": 740}, color_scheme=scheme
        )
        await page.wait_for_selector("#alerts li")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        ratios = await page.evaluate(CONTRAST)
        assert len(ratios) > 20 and min(ratio for _, ratio in ratios) >= 4.5, sorted(
            ratios, key=lambda r: r[1]
        )[:3]
        assert await page.evaluate(UNNAMED) == 0 and wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
async def test_axe_finds_nothing_inaccessible(browser: Browser, scheme: str, width: int) -> None:
    """All rules of axe-core that apply, its advice beyond WCAG, too, with alerts there and a customer chosen."""
    async with served() as (address, live):
        live.sent([alert("ann"), alert(ODD)])
        page, _ = await opened(
            browser, address, viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        await page.wait_for_selector("#alerts li")
        await page.get_by_role("button", name="ann", exact=True).first.click()
        await page.wait_for_selector("#who dl")
        await page.evaluate(AXE_SCRIPT)
        found = await page.evaluate("axe.run()")
        passed, wrong = len(found["passes"]), found["violations"]
        print(f"axe-core {found['testEngine']['version']}: {passed} rules hold, {len(wrong)} do not")
        assert [(rule["id"], [node["html"][:80] for node in rule["nodes"]]) for rule in wrong] == []
        assert passed >= 20


UNNAMED = """
[...document.querySelectorAll("button, input, svg, section, ul")].filter((e) => !(e.getAttribute("aria-label")
  || e.getAttribute("aria-labelledby") || e.textContent.trim() || e.labels?.length)).length
"""
CONTRAST = """
() => {
  const lum = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(Number).map((v) => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c) && c !== "transparent") return c; } return "rgb(255, 255, 255)"; };
  return [...document.querySelectorAll("body *")]
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
    .filter((e) => !e.closest("script, style"))
    .map((e) => { const [a, b] = [lum(getComputedStyle(e).color), lum(ground(e))].sort((x, y) => y - x);
      return [e.tagName + " " + e.textContent.slice(0, 20), (a + 0.05) / (b + 0.05)]; });
}
"""


async def test_a_token_is_given_once_and_opens_the_page(browser: Browser) -> None:
    async with served("s3cret") as (address, _):
        page, _wrong = await opened(browser, address)
        await page.get_by_label("Token").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.locator("body")).to_contain_text("that is not the token")
        await page.goto(address)
        await page.get_by_label("Token").fill("s3cret")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#status.ready")
        (cookie,) = await page.context.cookies()
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and "s3cret" not in cookie["value"]


def asked(url: str, method: str = "GET", **headers: str) -> int:
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def test_a_session_reads_until_it_ends_and_cannot_be_made_up() -> None:
    """Of another token, of another end, ended, or of nothing: 401, and so is whatever would change something."""
    now_s = SystemClock().now_ms() // 1000
    good, ended = new_session("s3cret", now_s + 60), new_session("s3cret", now_s - 1)
    until, _, signature = good.partition(".")
    async with served("s3cret") as (address, _):
        for path in ("/", "/live", "/v1/customers/ann"):
            status = await asyncio.to_thread(asked, address + path)
            assert status == 401, path
        assert (
            await asyncio.to_thread(asked, address + "/v1/customers/ann", Cookie=f"{SESSION}={good}") == 200
        )
        for value in (
            ended, new_session("other", now_s + 60), f"{int(until) + 1}.{signature}", f"{until}.", until, ".", "",
            f"²{good}", f"{until}.{'0' * 64}", "9" * 40 + "." + signature,
        ):  # fmt: skip
            cookie = f"{SESSION}={value}".encode().decode("latin-1")
            assert await asyncio.to_thread(asked, address + "/v1/customers/ann", Cookie=cookie) == 401, value
        assert await asyncio.to_thread(asked, address + "/", "POST", Cookie=f"{SESSION}={good}") == 401
        assert await asyncio.to_thread(asked, address + "/session") == 401


async def test_the_stream_ends_in_time_and_goes_on_where_it_was() -> None:
    """Within the server's bound on answers; who comes back with the last id gets what came since, and no more."""

    def read(address: str, last: str = "") -> tuple[list[str], float]:
        clock = SystemClock()
        began_s = clock.monotonic_s()
        headers = {"Last-Event-ID": last} if last else {}
        with urllib.request.urlopen(
            urllib.request.Request(address + "/live", headers=headers), timeout=15
        ) as answer:
            text = answer.read().decode()
        return [part for part in text.split("\n\n") if part], clock.monotonic_s() - began_s

    async with served() as (address, live):
        live.sent([alert("ann"), alert("bob")])
        (one, _), (two, _) = await told(2, address)
        (parts, took_s), (later, _) = await asyncio.gather(
            asyncio.to_thread(read, address), asyncio.to_thread(read, address, one)
        )
    assert 7.0 < took_s < 10.0
    alerts = [part for part in parts if "event: alert" in part]
    assert [part.split("\n")[0] for part in alerts] == [f"id: {one}", f"id: {two}"]
    assert [each.partition("-")[2] for each in (one, two)] == ["1", "2"]
    assert [part.split("\n")[0] for part in later if "event: alert" in part] == [f"id: {two}"]
    now = next(part for part in parts if "event: now" in part)
    assert json.loads(now.split("data: ")[1])["model"] == "shop"


def test_the_page_needs_nothing_from_elsewhere() -> None:
    """One file, 20 kB at most, and no address in it."""
    assert len(PAGE.encode()) < 20_000
    assert [
        word
        for word in ("http://", "https://", "//cdn", "@import", "url(")
        if word in PAGE.replace("http://www.w3.org/2000/svg", "")
    ] == []


async def events_of(address: str, last: str) -> AsyncGenerator[tuple[str, str]]:
    """(id, customer) of the alerts that /live sends to who has had `last`."""
    headers = {"Last-Event-ID": last} if last else {}
    async with aiohttp.ClientSession() as client, client.get(address + "/live", headers=headers) as answer:
        number = ""
        async for line in answer.content:
            if line.startswith(b"id: "):
                number = line[4:].decode().strip()
            elif line.startswith(b"data: ") and number:
                yield number, json.loads(line[6:])["customer"]
                number = ""


async def told(n: int, address: str, last: str = "") -> list[tuple[str, str]]:
    """The next `n` of them. Raises TimeoutError."""
    async with asyncio.timeout(7), aclosing(events_of(address, last)) as events:
        return [await anext(events) for _ in range(n)]


async def test_who_comes_back_to_another_process_misses_nothing() -> None:
    """Numbers begin anew with each process: a browser that has had 3 of the last one is told the new one's first."""
    async with served() as (first, live), served() as (second, other):
        live.sent([alert("ann"), alert("bob"), alert("cid")])
        (one, _), (_, _), (last, _) = await told(3, first)
        other.sent([alert("dan")])
        assert [who for _, who in await told(1, second, last)] == ["dan"]
        assert [who for _, who in await told(2, first, one)] == ["bob", "cid"]


async def test_a_page_outlives_an_answer_that_is_none(browser: Browser) -> None:
    """Any status but 200 ends an EventSource for good; the page begins a new one where the old one ended."""
    clock = SystemClock()
    live = Live("alerts", clock, about)
    (port,) = free_ports(1)
    settings = HttpSettings(port=port)
    server = HttpServer(settings, page_routes(live, settings, clock))
    address = await server.start()
    try:
        live.sent([alert("ann")])
        page, _ = await opened(browser, address)
        await page.wait_for_selector("#alerts li")
        await server.stop()
        server = HttpServer(settings, [])  # somebody in between who says 404
        await server.start()
        await expect(page.locator("#status")).to_have_text("the worker does not answer", timeout=10_000)
        await server.stop()
        server = HttpServer(settings, page_routes(live, settings, clock))
        await server.start()
        live.sent([alert("bob")])
        await page.wait_for_selector("#status.ready", timeout=10_000)
        await expect(page.locator("#alerts")).to_contain_text("bob", timeout=10_000)
    finally:
        await server.stop()

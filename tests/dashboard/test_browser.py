"""A real Chromium looks at the dashboard."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from playwright.sync_api import Page, expect, sync_playwright

from tests.support.dashboards import dashboard
from tests.support.fake_network import FakeQueries

CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WATCH_POLICY = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; set CHROMIUM to its path"),
]


@dataclass
class Seen:
    """What a clean page leaves empty."""

    problems: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


@contextmanager
def browsing(url: str, folder: Path, width: int, scheme: str) -> Iterator[tuple[Page, Seen]]:
    seen = Seen()
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(folder),
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            viewport={"width": width, "height": 800},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        try:
            page = context.new_page()
            page.on("pageerror", lambda error: seen.problems.append(str(error)))
            page.on(
                "console",
                lambda message: (
                    seen.problems.append(message.text)
                    if message.type in ("error", "warning")
                    else None
                ),
            )
            page.on(
                "request",
                lambda request: (
                    seen.foreign.append(request.url)
                    if not request.url.startswith((url, "data:"))
                    else None
                ),
            )
            page.add_init_script(WATCH_POLICY)
            page.goto(f"{url}/dashboard")
            yield page, seen
            seen.problems += page.evaluate("window.violations")
        finally:
            context.close()


Look = Callable[[Page], None]


async def browse(
    queries: FakeQueries, folder: Path, look: Look, width: int = 1200, scheme: str = "light"
) -> Seen:
    def in_thread(url: str) -> Seen:
        with browsing(url, folder, width, scheme) as (page, seen):
            expect(page.locator("#state")).to_have_text("live")
            expect(page.locator("#chart canvas").first).to_be_attached()
            look(page)
        return seen

    async with dashboard(queries) as url:
        return await trio.to_thread.run_sync(in_thread, url)


def has_no_horizontal_scroll(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "dark")])
async def test_figures_move_and_the_page_is_clean(tmp_path: Path, width: int, scheme: str) -> None:
    def look(page: Page) -> None:
        before = page.locator("#tokens-per-s").inner_text()
        expect(page.locator("#tokens-per-s")).not_to_have_text(before)
        expect(page.locator("#nodes tbody tr")).to_have_count(5)
        expect(page.locator("#sessions tbody tr")).to_have_count(4)
        expect(page.locator("#receipts tbody tr")).to_have_count(5)
        expect(page.locator("#legend li")).to_have_count(5)
        expect(page.locator("#chart-empty")).to_be_hidden()
        assert has_no_horizontal_scroll(page)
        # The bars of all five nodes are painted in their colours.
        painted = page.evaluate(
            """() => {
              const colours = new Set();
              const walk = (root) => {
                for (const canvas of root.querySelectorAll("canvas")) {
                  const { width, height } = canvas;
                  if (!width) continue;
                  const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
                  for (let i = 0; i < data.length; i += 4)
                    if (data[i + 3] === 255) colours.add(`${data[i]},${data[i+1]},${data[i+2]}`);
                }
                for (const element of root.querySelectorAll("*"))
                  if (element.shadowRoot) walk(element.shadowRoot);
              };
              walk(document);
              const style = getComputedStyle(document.documentElement);
              return [0, 1, 2, 3, 4].filter((i) => {
                const hex = style.getPropertyValue(`--series-${i}`).trim().slice(1);
                return colours.has(hex.match(/../g).map((two) => parseInt(two, 16)).join(","));
              }).length;
            }"""
        )
        assert painted == 5

    seen = await browse(FakeQueries(5, 4), tmp_path, look, width, scheme)
    assert seen == Seen()


async def test_empty_states_say_what_to_do(tmp_path: Path) -> None:
    def look(page: Page) -> None:
        expect(page.locator("#join")).to_contain_text("specedge-node join --coordinator /ip4/")
        expect(page.locator("#ask")).to_contain_text("/v1/chat/completions")
        for name in ("nodes", "sessions", "receipts"):
            expect(page.locator(f"#{name}")).to_be_hidden()
            expect(page.locator(f"#{name}-empty")).to_be_visible()
        expect(page.locator("#chart-empty")).to_be_visible()
        assert has_no_horizontal_scroll(page)

    assert await browse(FakeQueries(), tmp_path, look, width=360) == Seen()


async def test_names_from_nodes_stay_text(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>" + "W" * 500

    def look(page: Page) -> None:
        cell = page.locator("#nodes tbody tr td").nth(1)
        expect(cell).to_have_text(hostile)
        assert page.locator("#nodes img, #nodes script").count() == 0
        assert has_no_horizontal_scroll(page)

    seen = await browse(FakeQueries(2, draft_model=hostile), tmp_path, look, width=360)
    assert seen == Seen()

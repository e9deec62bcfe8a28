"""A real Chromium looks at the dashboard."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from playwright.sync_api import Page, expect

from tests.support.browser import Seen, browsing, has_no_horizontal_scroll, needs_chromium
from tests.support.dashboards import dashboard
from tests.support.fake_network import BENEFIT, FakeQueries

pytestmark = [pytest.mark.e2e, needs_chromium]

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


@pytest.mark.parametrize(
    ("change", "statement"),
    [
        ({}, "Volunteers make it 1.21× faster (1.15–1.27, 34 sessions compared)"),
        (
            {"ratio": 1.02, "low": 0.97, "high": 1.07},
            "No clear difference yet: 1.02× the speed with volunteers "
            "(0.97–1.07, 34 sessions compared)",
        ),
        (
            {"ratio": 0.9, "low": 0.85, "high": 0.951},
            "Volunteers make it slower: 0.90× the speed (0.85–0.95, 34 sessions compared)",
        ),
        (
            {"ratio": None, "low": None, "high": None, "num_holdouts": 3},
            "Not enough data: 3 of 20 sessions without volunteers have ended",
        ),
        (
            {"ratio": None, "low": None, "high": None, "num_drafted": 7},
            "Not enough data: 7 of 20 sessions with volunteers have ended",
        ),
        (
            {"ratio": None, "low": None, "high": None},
            "Not enough data: the sessions compared were too short",
        ),
        ({"is_measured": False}, "Not measured: no sessions are held out here"),
    ],
)
async def test_what_volunteers_bring_is_said_plainly(
    tmp_path: Path, change: dict[str, object], statement: str
) -> None:
    def look(page: Page) -> None:
        expect(page.locator("#benefit")).to_have_text(statement)
        is_measured = change.get("is_measured", True)
        expect(page.locator("#benefit-basis")).to_be_visible(visible=bool(is_measured))

    queries = FakeQueries(2, benefit=replace(BENEFIT, **change))  # type: ignore[arg-type]
    assert await browse(queries, tmp_path, look) == Seen()


@pytest.mark.parametrize("width", [1200, 360])
async def test_who_guessed_and_what_the_engine_costs(tmp_path: Path, width: int) -> None:
    def look(page: Page) -> None:
        items = page.locator("#guesses li")
        expect(items).to_have_text(
            [
                "guessed by volunteers 48 % (two of them: 2 %)",
                "guessed by n-gram 16 %",
                "guessed by the engine's draft model 4 %",
                "guessed by nobody 32 %",
            ]
        )
        widths = [piece.bounding_box()["width"] for piece in page.locator("#shares span").all()]
        assert widths[0] / sum(widths) == pytest.approx(0.48, abs=0.01)
        expect(page.locator("#step-cost")).to_have_text("40 ms + 0.080 ms per row")
        expect(page.locator("#row-price")).to_have_text("0.033 tokens")
        expect(page.locator("#levels-per-step")).to_have_text("0.24")
        expect(page.locator("#ngram-rates")).to_have_text(
            "61 % of order 4, 42 % of order 3, 20 % of order 2"
        )
        assert has_no_horizontal_scroll(page)

    assert await browse(FakeQueries(5, 4), tmp_path, look, width) == Seen()


async def test_empty_states_say_what_to_do(tmp_path: Path) -> None:
    def look(page: Page) -> None:
        expect(page.locator("#join")).to_contain_text("specedge-node join --coordinator /ip4/")
        expect(page.locator("#ask")).to_contain_text("/v1/chat/completions")
        for name in ("nodes", "sessions", "receipts"):
            expect(page.locator(f"#{name}")).to_be_hidden()
            expect(page.locator(f"#{name}-empty")).to_be_visible()
        expect(page.locator("#chart-empty")).to_be_visible()
        expect(page.locator("#shares")).to_be_hidden()
        expect(page.locator("#levels-per-step")).to_have_text("—")
        expect(page.locator("#ngram-rates")).to_have_text("switched off")
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

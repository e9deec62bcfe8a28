"""A real Chromium watches a real network at work."""

import os
from pathlib import Path

import pytest
import trio
from playwright.sync_api import Page, expect

from specedge_p2p.demo.client import PROMPTS, Sampling
from tests.support.browser import Seen, browsing, has_no_horizontal_scroll, needs_chromium
from tests.support.network import generate, running_site

pytestmark = [pytest.mark.e2e, pytest.mark.alone, needs_chromium]

SCREENSHOT = os.environ.get("SPECEDGE_SCREENSHOT")
"""Where to put a picture of the page, for the documentation."""


async def test_the_dashboard_of_a_running_network_moves(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        coordinator = await site.coordinator("coordinator", "--step-floor", "0.02")
        for name in ("one", "two"):
            await site.node(name, coordinator)
        await coordinator.until_nodes(2)
        seen: list[Seen] = []

        def look() -> None:
            with browsing(coordinator.gateway, tmp_path / "browser", 1200, "light") as (page, log):
                watch(page)
                seen.append(log)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, look)
            while not seen:
                await generate(coordinator, PROMPTS, Sampling(120, 0.7, None))
        assert seen == [Seen()]


def watch(page: Page) -> None:
    """Every figure comes to life."""
    expect(page.locator("#state")).to_have_text("live")
    expect(page.locator("#nodes tbody tr")).to_have_count(2)
    expect(page.locator("#sessions tbody tr").first).to_be_visible(timeout=20_000)
    expect(page.locator("#receipts tbody tr").first).to_be_visible(timeout=20_000)
    expect(page.locator("#chart canvas").first).to_be_attached()
    expect(page.locator("#chart-empty")).to_be_hidden(timeout=20_000)
    first = page.locator("#num-tokens").inner_text()
    expect(page.locator("#num-tokens")).not_to_have_text(first, timeout=20_000)
    assert has_no_horizontal_scroll(page)
    if SCREENSHOT:
        page.wait_for_timeout(8_000)  # more bars for the picture
        page.screenshot(path=SCREENSHOT, full_page=True)

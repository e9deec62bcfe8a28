"""A real Chromium on a page of ours, and what it complains about."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

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

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium; set CHROMIUM to its path"
)


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


def has_no_horizontal_scroll(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))

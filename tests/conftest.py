"""Hypothesis profiles: `dev` at home, `ci` where CI is set, `soak` in `make soak`. And Triton.

Trio runs the tasks that are ready at the same moment in a random order. The tests draw it from
`--schedule-seed` (0 unless given), so that what runs in virtual time runs the same way again;
`make soak` draws a seed of its own.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from trio._core._run import _r as scheduler_random

_SLOW_MACHINE = [HealthCheck.too_slow]

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile(
    "ci", max_examples=50, deadline=None, derandomize=True, suppress_health_check=_SLOW_MACHINE
)
settings.register_profile(
    "soak", max_examples=500, deadline=None, suppress_health_check=_SLOW_MACHINE
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

if not Path("/dev/nvidiactl").exists():
    # Before anything imports triton: its own library is compiled or interpreted from then on.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--schedule-seed",
        type=int,
        default=0,
        help="draws the order in which trio runs tasks that are ready at the same moment",
    )


def pytest_report_header(config: pytest.Config) -> str:
    return f"schedule seed: {config.getoption('--schedule-seed')}"


@pytest.fixture(autouse=True)
def _schedule_is_repeatable(request: pytest.FixtureRequest) -> None:
    """Trio has no public door to this; Hypothesis and pytest-trio take the same one."""
    scheduler_random.seed(request.config.getoption("--schedule-seed"))


@pytest.fixture(autouse=True)
def _priority_is_kept() -> Iterator[None]:
    """A test that lowered its process' priority would make all later ones slow."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    yield
    assert os.getpriority(os.PRIO_PROCESS, 0) == before

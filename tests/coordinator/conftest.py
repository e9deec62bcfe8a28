"""What holds in every test of the coordinator."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_handler_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A node may break its own link, but never make the coordinator's code fail."""
    yield
    failed = [r for r in caplog.get_records("call") if r.name == "specedge_p2p.overlay.guard"]
    assert not failed, [r.getMessage() + str(r.exc_info) for r in failed]

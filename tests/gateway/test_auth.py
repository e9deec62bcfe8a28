import pytest

from coordinator.gateway.auth import ApiKey, Authenticator
from tests.support.gateways import FakeKeys


@pytest.mark.parametrize("header", ["Bearer good", "bearer  good "])
async def test_takes(header: str) -> None:
    key = ApiKey("k", "label", "none")
    assert await Authenticator(FakeKeys(good=key)).authenticate(header) is key


async def test_open_gateway_asks_for_nothing() -> None:
    key = await Authenticator(None, open_volunteers="none").authenticate(None)
    assert (key.id, key.volunteers) == ("", "none")

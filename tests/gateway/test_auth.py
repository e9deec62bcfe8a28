import pytest

from coordinator.gateway.auth import Authenticator
from coordinator.gateway.ports import Refused
from tests.support.gateways import FakeKey, FakeKeys


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic good", "good", "Bearer no", "Bearer " + "x" * 300],
)
async def test_refuses(header: str | None) -> None:
    keys = FakeKeys(good=FakeKey("k"), **{"x" * 300: FakeKey("too long")})
    with pytest.raises(Refused) as caught:
        await Authenticator(keys).authenticate(header)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


@pytest.mark.parametrize("header", ["Bearer good", "bearer  good "])
async def test_takes(header: str) -> None:
    key = FakeKey("k", "none")
    assert await Authenticator(FakeKeys(good=key)).authenticate(header) is key


async def test_open_gateway_asks_for_nothing() -> None:
    key = await Authenticator(None, open_volunteers="none").authenticate(None)
    assert (key.key_id, key.volunteers) == ("", "none")

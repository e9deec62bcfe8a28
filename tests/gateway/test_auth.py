import httpx
import pytest

from coordinator.gateway.auth import ApiKey, Authenticator
from coordinator.store.errors import StoreUnavailable
from tests.support.fake_generations import MODEL
from tests.support.gateways import FakeKeys, gateway


@pytest.mark.parametrize("header", ["Bearer good", "bearer  good "])
async def test_takes(header: str) -> None:
    key = ApiKey("k", "label", "none")
    assert await Authenticator(FakeKeys(good=key)).authenticate(header) is key


async def test_open_gateway_asks_for_nothing() -> None:
    key = await Authenticator(None, open_volunteers="none").authenticate(None)
    assert (key.id, key.volunteers) == ("", "none")


async def test_keys_that_cannot_be_looked_up_are_worth_another_try() -> None:
    class Away:
        async def lookup(self, digest: bytes) -> ApiKey | None:
            raise StoreUnavailable("cannot read postgresql://x: the server closed the connection")

    async with (
        gateway(keys=Away()) as served,
        httpx.AsyncClient(base_url=served.url) as client,
    ):
        body, headers = {"model": MODEL, "prompt": "Hi"}, {"authorization": "Bearer good"}
        answer = await client.post("/v1/completions", json=body, headers=headers)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "x-should-retry" not in answer.headers
        assert answer.json()["error"]["code"] == "not_ready"

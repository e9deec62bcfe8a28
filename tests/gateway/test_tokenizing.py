"""Whose prompt is tokenized next."""

import threading
from functools import partial

import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from coordinator.gateway.limits import LimitSettings
from coordinator.gateway.tokenizing import Tokenizing
from tests.support.fake_generations import MODEL
from tests.support.gateways import gateway

pytestmark = pytest.mark.filterwarnings(
    r"ignore:Async generator '(httpx|httpcore)\.:ResourceWarning"
)


async def test_callers_take_turns() -> None:
    """One caller has five prompts in line when another comes with its first: it is the next."""
    tokenizing, order = Tokenizing(), list[str]()
    may_end = threading.Event()

    def work(name: str) -> None:
        may_end.wait(20)
        order.append(name)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(tokenizing.run, "many", partial(work, f"many {number}"))
            await wait_all_tasks_blocked()
        nursery.start_soon(tokenizing.run, "one", partial(work, "one"))
        await wait_all_tasks_blocked()
        may_end.set()
    assert not tokenizing._turns
    assert order == ["many 0", "one", "many 1", "many 2", "many 3", "many 4"]


async def test_who_leaves_the_line_takes_nobody_elses_turn() -> None:
    tokenizing, order = Tokenizing(), list[str]()
    may_end, leaving = threading.Event(), trio.CancelScope()

    def work(name: str) -> None:
        may_end.wait(20)
        order.append(name)

    async def leave() -> None:
        with leaving:
            await tokenizing.run("many", partial(work, "left"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tokenizing.run, "many", partial(work, "first"))
        await wait_all_tasks_blocked()
        nursery.start_soon(leave)
        await wait_all_tasks_blocked()
        leaving.cancel()
        await wait_all_tasks_blocked()
        nursery.start_soon(tokenizing.run, "many", partial(work, "second"))
        await wait_all_tasks_blocked()
        assert list(tokenizing._turns) == ["many"]
        may_end.set()
    assert order == ["first", "second"]
    assert not tokenizing._turns


async def test_one_prompt_at_a_time_whoever_asks() -> None:
    tokenizing, running, most = Tokenizing(), list[int](), list[int]()

    def work(number: int) -> None:
        running.append(number)
        most.append(len(running))
        running.remove(number)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(tokenizing.run, str(number), partial(work, number))
    assert most == [1] * 20


async def test_an_error_is_the_callers_and_a_turn_is_given_back() -> None:
    tokenizing = Tokenizing()

    def fail() -> None:
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await tokenizing.run("one", fail)
    assert await tokenizing.run("one", lambda: 5) == 5
    assert not tokenizing._turns


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_prompt_being_tokenized_has_its_callers_place(is_stream: bool) -> None:
    asked = {"model": MODEL, "prompt": "Hi", "stream": is_stream}
    async with (
        gateway(limits=LimitSettings(max_concurrent=1)) as served,
        httpx.AsyncClient(base_url=served.url, timeout=20) as client,
    ):
        answers = []

        async def ask() -> None:
            answers.append((await client.post("/v1/completions", json=asked)).status_code)

        served.generations.may_encode.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            assert await trio.to_thread.run_sync(served.generations.has_begun.wait, 10)
            with trio.move_on_after(5):
                await ask()
            served.generations.may_encode.set()
        assert answers == [429, 200]


async def test_who_left_while_standing_in_line_is_not_tokenized() -> None:
    asked = {"model": MODEL, "prompt": "Hi"}
    async with (
        gateway() as served,
        httpx.AsyncClient(base_url=served.url, timeout=20) as client,
    ):
        places, leaving = served.app.state.gateway._limits._running, trio.CancelScope()

        async def until(num_places: int) -> None:
            while places.total() != num_places:  # noqa: ASYNC110 - seen from outside
                await trio.sleep(0.005)

        async def ask(stop: str) -> None:
            await client.post("/v1/completions", json=asked | {"stop": stop})

        async def leave() -> None:
            with leaving:
                await ask("second")

        served.generations.may_encode.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "first")
            assert await trio.to_thread.run_sync(served.generations.has_begun.wait, 10)
            nursery.start_soon(leave)
            await until(num_places=2)
            leaving.cancel()
            await until(num_places=1)
            served.generations.may_encode.set()
        await ask("third")
        assert [each.stop for each in served.generations.requests] == [("first",), ("third",)]

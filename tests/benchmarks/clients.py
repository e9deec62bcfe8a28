"""Clients that keep a number of sessions busy: each starts its next request when one has ended."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import httpx
import trio

from specedge_p2p.demo.client import stream_chunks


@dataclass(frozen=True, slots=True)
class Job:
    """One request. Equal jobs get equal tokens in every mode, so modes can be paired by job."""

    number: int
    prompt_ids: tuple[int, ...]
    seed: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """The jobs of a run: `least` of them are measured, and at least one for each session."""

    jobs: tuple[Job, ...]
    least: int

    def of(self, num_sessions: int, num_turns: int = 1) -> tuple[Job, ...]:
        """The jobs of a serving; in every further turn each has another seed."""
        jobs = self.jobs[: max(self.least, num_sessions)]
        return tuple(
            replace(job, number=turn * len(jobs) + job.number, seed=job.seed + turn)
            for turn in range(num_turns)
            for job in jobs
        )


@dataclass(slots=True)
class Served:
    """When the tokens of one job came, in real seconds.

    `gaps_s` are the waits between two bursts of tokens, as a reader of the stream sees them.
    """

    job: Job
    first_s: float = 0.0
    last_s: float = 0.0
    num_first: int = 0
    """Tokens of the first burst."""
    num_tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)
    num_by_guesser: dict[str, int] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)

    @property
    def decode_s(self) -> float:
        """From the first burst to the last."""
        return self.last_s - self.first_s

    def add(self, tokens: Sequence[Sequence[object]], now_s: float) -> None:
        """Take one burst."""
        if self.num_tokens:
            self.gaps_s.append(now_s - self.last_s)
        else:
            self.first_s, self.num_first = now_s, len(tokens)
        self.last_s = now_s
        self.num_tokens += len(tokens)
        for token_id, guesser in tokens:
            name = str(guesser)
            self.token_ids.append(int(str(token_id)))
            self.num_by_guesser[name] = self.num_by_guesser.get(name, 0) + 1


WARM_UP_TOKENS = 48
"""Every client first serves a job of at most so many tokens, unmeasured: long enough for costs and
rates to be learned. They differ in length, so that the sessions do not march in step."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How a mode is loaded.

    Args:
        jobs: what is measured; after them they are served again, unmeasured, until the last of the
            measured ones has ended, so that the load stays the same all the time.
        num_sessions: requests in flight.
        temperature: of all requests.
        volunteers: who may draft.
    """

    jobs: tuple[Job, ...]
    num_sessions: int
    temperature: float
    volunteers: str = "any"


async def serve_all(gateway: str, plan: LoadPlan) -> list[Served]:
    """Serve the plan; returns the measured jobs in their order. Raises GatewayError."""
    measured: dict[int, Served] = {}
    order = _job_numbers(len(plan.jobs))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(60.0, read=None, pool=None)
    async with httpx.AsyncClient(base_url=gateway, timeout=timeout, limits=limits) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]

        async def run(place: int) -> None:
            share = (place + 1) / plan.num_sessions
            job = plan.jobs[-1 - place % len(plan.jobs)]
            await _serve(client, _body(model, job, plan, round(WARM_UP_TOKENS * share)), job)
            while True:
                number, is_measured = next(order)
                job = plan.jobs[number]
                served = await _serve(client, _body(model, job, plan, job.num_tokens), job)
                if is_measured:
                    measured[number] = served
                if len(measured) == len(plan.jobs):
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for place in range(plan.num_sessions):
                nursery.start_soon(run, place)
    return [measured[number] for number in range(len(plan.jobs))]


def _job_numbers(num_jobs: int) -> Iterator[tuple[int, bool]]:
    for number in count():
        yield number % num_jobs, number < num_jobs


def _body(model: str, job: Job, plan: LoadPlan, num_tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "prompt": list(job.prompt_ids),
        "max_tokens": max(2, num_tokens),
        "temperature": plan.temperature,
        "seed": job.seed,
        "stream": True,
        "ignore_eos": True,
        "volunteers": plan.volunteers,
        "specedge": {"sources": True},
    }


async def _serve(client: httpx.AsyncClient, body: dict[str, object], job: Job) -> Served:
    served = Served(job)
    async for chunk in stream_chunks(client, body):
        extra = chunk.get("specedge")
        tokens = extra.get("tokens") if isinstance(extra, dict) else None
        if tokens:
            served.add(tokens, trio.current_time())
    return served

"""Engine cores on the toy model, and what they must say."""

from collections.abc import Sequence

from coordinator.engine.core import EngineCore
from coordinator.engine.messages import EntryResult
from coordinator.engine.settings import EngineLimits
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.lm.toy import ToyModel, ToyParams, toy_decode
from specedge_p2p.noise import noise_key, seed_bytes
from tests.support.engine import GREEDY, Run, batch, open_session

PARAMS = ToyParams(vocab_size=32)
WARM = SamplingParams(temperature=0.8, top_k=12, top_p=0.95)
PROMPT = [5, 9, 7, 5, 9, 7, 3]


class Clock:
    """Seconds that pass by themselves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def make_core(
    params: ToyParams = PARAMS,
    limits: EngineLimits | None = None,
    max_context: int = 4096,
    cache_rows: int = 1 << 20,
) -> EngineCore:
    return EngineCore(
        ToyModel(params, max_context=max_context, cache_rows=cache_rows), Clock(), limits
    )


def make_run(max_context: int = 4096, cache_rows: int = 1 << 20) -> Run:
    return Run(make_core(max_context=max_context, cache_rows=cache_rows))


def decode(
    prompt: Sequence[int],
    max_tokens: int = 16,
    sampling: SamplingParams = GREEDY,
    params: ToyParams = PARAMS,
    seed: int = 0,
) -> list[int]:
    key = noise_key(seed_bytes(seed), list(prompt))
    return toy_decode(params, prompt, sampling, key, max_tokens)


def only(results: Sequence[EntryResult]) -> EntryResult:
    (result,) = results
    return result


def started(sessions: Sequence[int] = (1,), cache_rows: int = 1 << 20) -> Run:
    """A run whose sessions have their first token."""
    run = make_run(cache_rows=cache_rows)
    for session in sessions:
        run.open(open_session(session, PROMPT))
    run.step(batch(sessions))
    return run

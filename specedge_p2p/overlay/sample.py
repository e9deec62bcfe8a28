"""A short sample of a target model's own tokens, by which a node chooses its draft model.

A coordinator hands it to whoever asks, over the authenticated link: no tokens of users are in it,
only what the target says to prompts of its own. What a draft model guesses of it is what it will
guess for that target.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Final

import msgspec
import trio

from specedge_p2p.overlay.ports import Link, LinkClosed, Overlay, OverlayError
from specedge_p2p.wire.columns import pack_tokens, unpack_tokens
from specedge_p2p.wire.errors import ProtocolError

SAMPLE_PROTOCOL: Final = "/specedge/sample/1"
"""Asks a coordinator for its sample: one empty frame there, one frame back, empty for none."""
MAX_CASES: Final = 16
MAX_CASE_TOKENS: Final = 512
"""Of a prompt, and of what follows it."""
ASK_S: Final = 60.0
"""For dialling and being answered: the first who asks waits until the sample is made."""
ANSWER_S: Final = 50.0

_Tokens = Annotated[bytes, msgspec.Meta(min_length=3, max_length=3 * MAX_CASE_TOKENS)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class SampleError(OverlayError):
    """The coordinator has no sample, or it handed over something else."""


class SampleCase(msgspec.Struct, frozen=True, array_like=True):
    """One generation of the target.

    Args:
        prompt_ids, token_ids: the prompt and what followed, 3 bytes a token.
        temperature: at which the tokens were chosen.
        noise_key: with which; nodes rank their guesses with the same noise.
    """

    prompt_ids: _Tokens
    token_ids: _Tokens
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1000)]
    noise_key: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]

    @property
    def prompt(self) -> list[int]:
        return _listed(self.prompt_ids)

    @property
    def tokens(self) -> list[int]:
        return _listed(self.token_ids)


class DraftSample(msgspec.Struct, frozen=True, array_like=True):
    """What a draft model is measured on. Later versions may append fields with defaults.

    Args:
        target_model: its name.
        tokenizer_fingerprint: a draft model must have the same tokenizer.
        vocab_size: all tokens are below it.
        step_time_s: one step of the engine, as of now.
        cases: some of temperature 0 and some above.
    """

    target_model: Annotated[str, msgspec.Meta(max_length=256)]
    tokenizer_fingerprint: Annotated[bytes, msgspec.Meta(max_length=64)]
    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    step_time_s: _Seconds
    cases: Annotated[list[SampleCase], msgspec.Meta(min_length=1, max_length=MAX_CASES)]


def sample_case(
    prompt_ids: list[int], token_ids: list[int], temperature: float, noise_key: bytes
) -> SampleCase:
    return SampleCase(pack_tokens(prompt_ids), pack_tokens(token_ids), temperature, noise_key)


_decoder = msgspec.msgpack.Decoder(DraftSample)


def encode_sample(sample: DraftSample) -> bytes:
    """Raises ValueError for one that `decode_sample` would refuse."""
    data = msgspec.msgpack.encode(sample)
    try:
        decode_sample(data)
    except SampleError as error:
        raise ValueError(str(error)) from error
    return data


def decode_sample(data: bytes) -> DraftSample:
    """Check hostile bytes. Every defect is a SampleError."""
    if not data:
        raise SampleError("the coordinator has no sample at the moment")
    try:
        sample = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SampleError(f"not a sample: {error}") from None
    for case in sample.cases:
        if len(case.prompt_ids) % 3 or len(case.token_ids) % 3:
            raise SampleError("not a sample: a token has three bytes")
        if max(*case.prompt, *case.tokens) >= sample.vocab_size:
            raise SampleError("not a sample: a token outside the vocabulary")
    return sample


@asynccontextmanager
async def serve_sample(
    overlay: Overlay, current: Callable[[], Awaitable[DraftSample | None]]
) -> AsyncIterator[None]:
    """Hand the sample to whoever asks, while the context is open."""

    async def answer(link: Link) -> None:
        with trio.move_on_after(ANSWER_S):
            await link.receive()
            sample = await current()
            await link.send(b"" if sample is None else encode_sample(sample))

    async with overlay.serve(SAMPLE_PROTOCOL, answer):
        yield


async def fetch_sample(overlay: Overlay, address: str) -> DraftSample:
    """Ask a coordinator for its sample. Raises SampleError, also where nobody can be reached."""
    data: bytes | None = None
    problem = f"no sample within {ASK_S:g} s"
    try:
        with trio.move_on_after(ASK_S):
            async with overlay.dial(address, SAMPLE_PROTOCOL) as link:
                await link.send(b"")
                data = await link.receive()
    except* LinkClosed:
        problem = "the coordinator gives no sample"
    except* (OverlayError, ProtocolError) as group:
        problem = str(group.exceptions[0])
    if data is None:
        raise SampleError(problem)
    return decode_sample(data)


def _listed(packed: bytes) -> list[int]:
    listed: list[int] = unpack_tokens(packed).tolist()
    return listed

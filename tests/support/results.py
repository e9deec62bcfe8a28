"""A session by itself, without a coordinator around it."""

from coordinator.engine.messages import EntryResult, TokenSource
from coordinator.sessions import Session
from coordinator.target_text import StoppedText
from specedge_p2p.lm.toy_text import ToyText
from specedge_p2p.names import SessionId
from specedge_p2p.noise import noise_key
from tests.support.swarm import VOCAB, identity, request

ANNA, BEN = (identity(number).peer_id for number in (1, 2))
ANNAS, BENS = 7, 8
"""Their sources."""


def session(number: int = 1, stop: tuple[str, ...] = ()) -> Session:
    asked = request("prompt", 50, 0.0, 0)
    return Session(
        number=number,
        session_id=SessionId(f"s{number}"),
        request=asked,
        noise_key=noise_key(bytes(16), asked.prompt_ids),
        max_tokens=50,
        text=StoppedText(ToyText(VOCAB), stop),
        opened_s=0.0,
        nodes_by_source={ANNAS: ANNA, BENS: BEN},
    )


def result(
    of: Session, token_ids: list[int], sources: list[int] | None = None, finish: str = ""
) -> EntryResult:
    """What a step decided after what is committed."""
    given = sources or [0] * len(token_ids)
    return EntryResult(
        session=of.number,
        from_position=len(of.token_ids),
        token_ids=token_ids,
        sources=[TokenSource(source) for source in given],
        num_rows=3,
        num_source_rows=sum(1 for source in given if source),
        finish=finish,
    )

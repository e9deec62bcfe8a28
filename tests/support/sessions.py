"""Sessions as the coordinator knows them, without a gateway."""

from coordinator.gateway.ports import GenerationRequest, Volunteers
from coordinator.sessions import Session
from coordinator.target_text import StoppedText
from specedge_p2p.lm.ports import SamplingParams
from specedge_p2p.lm.toy_text import ToyText
from specedge_p2p.names import SessionId


def make_session(
    number: int = 1, volunteers: Volunteers = "any", stop: tuple[str, ...] = ()
) -> Session:
    request = GenerationRequest("toy", (2, 3), SamplingParams(), 1, 8, stop, volunteers)
    return Session(
        number=number,
        session_id=SessionId(f"{number:024x}"),
        request=request,
        noise_key=bytes(16),
        max_tokens=8,
        text=StoppedText(ToyText(32), stop),
        opened_s=0.0,
    )

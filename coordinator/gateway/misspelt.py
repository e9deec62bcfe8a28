"""Unknown fields that were meant to be this server's own.

Clients send many fields that are not known here, and they are ignored. But a misspelt `volunteers`
would be ignored too, and the prompt go where its user did not allow it.
"""

from collections.abc import Iterable
from difflib import get_close_matches

from pydantic_core import PydanticCustomError

from coordinator.gateway.errors import encodable

OWN_FIELDS = ("volunteers", "specedge")
"""Fields that no other server has: who sees a prompt, and what is told of who helped."""
CLIENTS_OWN = "extrabody"
"""`extra_body` by whatever spelling, in which OpenAI's Python client is given such fields; it does
not send this name itself."""
LIKENESS = 0.8
"""From here on, by difflib, a name is taken for a misspelt one: `volunteer` has 0.95."""
MAX_CHARS = 32
"""Of a name that is compared: what is much longer is not alike, and comparing it takes long."""
MAX_FIELDS = 256
"""Of a body, since each unknown one is compared."""


def refuse_misspelt(names: Iterable[str]) -> None:
    """Raises PydanticCustomError where an unknown name stands for one of `OWN_FIELDS`."""
    for name in names:
        if len(name) > MAX_CHARS:
            continue
        is_wrapper = name.lower().replace("_", "") == CLIENTS_OWN
        hint = "put what is in it beside 'model'" if is_wrapper else _did_you_mean(name)
        if hint:
            name = encodable(name)
            text = f"unknown field '{name}': {hint}"
            raise PydanticCustomError("unknown_parameter", "{text}", {"param": name, "text": text})


def _did_you_mean(name: str) -> str:
    """Empty where it is not like any."""
    meant = get_close_matches(name.lower(), OWN_FIELDS, n=1, cutoff=LIKENESS)
    return f"did you mean '{meant[0]}'?" if meant else ""

"""Which models are computed right here: what a config says, and what its layers ask for.

A model whose attention cannot be computed as it was meant is refused, never run wrongly.
"""

from collections.abc import Mapping
from typing import Any

from specedge_p2p.lm.ports import ModelError

_FULL, _SLIDING = "full_attention", "sliding_attention"
_TURNING = ("longrope", "dynamic")


def check_layer_kinds(name: str, text_config: Any) -> None:  # noqa: ANN401
    """Raise ModelError for layers that are no causal attention over all tokens or the last few.

    Linear attention, convolutions and state spaces carry a state from token to token, so that the
    branches of a tree could not share one forward.
    """
    kinds = set(getattr(text_config, "layer_types", None) or ())
    if others := sorted(kinds - {_FULL, _SLIDING}):
        raise ModelError(f"{name}: layers of kind {', '.join(others)} are not supported")


def check_windows(name: str, text_config: Any, windows: Mapping[int, int | None]) -> None:  # noqa: ANN401
    """Raise ModelError where a config has windows that its layers did not ask for.

    Args:
        name: of the model, for people.
        text_config: transformers' config of a language model.
        windows: by layer, what it handed to the attention.
    """
    kinds = getattr(text_config, "layer_types", None)
    window = getattr(text_config, "sliding_window", None)
    if not getattr(text_config, "use_sliding_window", True):
        window = None
    for layer, found in sorted(windows.items()):
        is_sliding = bool(window) if kinds is None else kinds[layer] == _SLIDING
        if is_sliding != (found is not None):
            raise ModelError(
                f"{name}: layer {layer} does not say how its sliding window is meant: not supported"
            )


def longest_context(name: str, text_config: Any) -> int:  # noqa: ANN401
    """Tokens up to which a row depends on nothing but what it sees. Raises ModelError.

    Rotary embeddings of the kinds `longrope` and `dynamic` change all positions once the longest
    text of a *batch* outgrows the length they were trained with; below it they are fixed.
    """
    longest = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(longest, int):
        raise ModelError(f"{name}: its config states no longest context: not supported")
    for part in _turning_ropes(text_config):
        longest = min(longest, int(part.get("original_max_position_embeddings", longest)))
    return longest


def turns_with_length(text_config: Any) -> bool:  # noqa: ANN401
    """Whether rotary embeddings look, in every forward, how long the longest text is."""
    return bool(_turning_ropes(text_config))


def _turning_ropes(text_config: Any) -> list[Mapping[str, Any]]:  # noqa: ANN401
    """The rotary parameters that change with the length, of all layers or of a kind of them."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    by_layer_kind = [part for part in rope.values() if isinstance(part, dict)]
    return [part for part in (rope, *by_layer_kind) if part.get("rope_type") in _TURNING]

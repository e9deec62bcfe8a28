"""Weights in 8 or 4 bits, by torchao; activations and cache stay in the model's dtype.

Only weights are rounded, once and for all: what a row gives depends on no other row of its batch,
so the output law holds as without. (Schemes that round activations as well look at a whole batch.)
Embeddings and the output layer stay as they are.

int8 has a scale per output, int4 one per 32 inputs. Where int4 has a packed kernel (a GPU, in
bfloat16) weights take 4 bits; elsewhere they are kept in a byte each, so that int4 then saves no
more than int8 does and is there to try out what it costs in quality.
"""

import importlib.util
from hashlib import blake2b
from typing import Any, Literal

from specedge_p2p.lm.ports import ModelError

Quantize = Literal["none", "int8", "int4"]
QUANTIZE: tuple[Quantize, ...] = ("none", "int8", "int4")
GROUP_INPUTS = 32


def check_quantize(quantize: str, device: str, dtype: str) -> None:
    """Raise ModelError where weights cannot be quantized so."""
    if quantize not in QUANTIZE:
        raise ModelError(f"quantize {quantize!r}: give one of {', '.join(QUANTIZE)}")
    if quantize == "none":
        return
    if importlib.util.find_spec("torchao") is None:
        raise ModelError(
            f"quantizing to {quantize} needs torchao: in your clone, pip install '.[quantize]'"
        )
    has_packed_kernel = quantize == "int4" and device.startswith("cuda")
    if dtype not in (("bfloat16",) if has_packed_kernel else ("bfloat16", "float32")):
        raise ModelError(f"{quantize} weights do not compute in {dtype} on {device}")


def quantize_weights(model: Any, quantize: Quantize, device: str) -> None:  # noqa: ANN401
    """Quantize the inner linear layers in place, one after the other on `device`.

    So the whole model need not fit the device in its full width.
    """
    if quantize == "none":
        return
    from torch.nn import Linear
    from torchao.quantization import quantize_

    output_layer = model.get_output_embeddings()

    def is_inner(module: Any, name: str) -> bool:  # noqa: ANN401
        del name
        is_linear = isinstance(module, Linear) and module is not output_layer
        return is_linear and module.in_features % GROUP_INPUTS == 0

    quantize_(model, _config(quantize, device), is_inner, device=device)


def quantized_fingerprint(fingerprint: bytes, quantize: Quantize) -> bytes:
    """A model's fingerprint; with other weights it is another model."""
    if quantize == "none":
        return fingerprint
    return blake2b(quantize.encode(), key=fingerprint, digest_size=16).digest()


def _config(quantize: Quantize, device: str) -> Any:  # noqa: ANN401
    from torch import int4  # type: ignore[attr-defined]
    from torchao.quantization import (
        Int4WeightOnlyConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerGroup,
    )

    if quantize == "int8":
        return Int8WeightOnlyConfig(set_inductor_config=False)
    if device.startswith("cuda"):
        return Int4WeightOnlyConfig(
            group_size=GROUP_INPUTS,
            int4_packing_format="tile_packed_to_4d",
            set_inductor_config=False,
        )
    return IntxWeightOnlyConfig(weight_dtype=int4, granularity=PerGroup(GROUP_INPUTS))

"""Packed layers give what the plain ones give, and stay away from what must not change."""

import pytest
import torch
from torch import nn
from torch.nn.functional import silu

from specedge_p2p.lm.packed_linear import MIN_ELEMENTS, PackedLinear, Product, pack_linears

WIDTH = 512
assert WIDTH * WIDTH >= MIN_ELEMENTS


def linear(dtype: torch.dtype, *, has_bias: bool = True) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(WIDTH, WIDTH, bias=has_bias, dtype=dtype)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 9, 300])
def test_a_packed_layer_equals_the_plain_one(
    dtype: torch.dtype, bound: float, has_bias: bool, num_rows: int
) -> None:
    plain = linear(dtype, has_bias=has_bias)
    rows = torch.randn(1, num_rows, WIDTH, dtype=dtype)
    model = nn.Sequential(plain)
    assert pack_linears(model) == 1
    with torch.inference_mode():
        expected = plain(rows)
        found = model(rows)
    assert isinstance(model[0], PackedLinear)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert (found - expected).abs().max() < bound
    assert expected.abs().max() > 10 * bound


def test_what_must_not_change_is_not_packed() -> None:
    hooked = linear(torch.float32)
    hooked.register_forward_pre_hook(lambda module, args: None)
    kept = nn.ModuleList(
        [
            linear(torch.float64),
            hooked,
            nn.Linear(8, 8),
            nn.Bilinear(WIDTH, WIDTH, 2),
        ]
    )
    assert pack_linears(kept) == 0


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("width", [WIDTH, 8])
def test_what_follows_a_product_is_computed_with_it(
    dtype: torch.dtype, bound: float, width: int
) -> None:
    torch.manual_seed(4)
    layer = nn.Linear(WIDTH, width, dtype=dtype)
    rows, factors = torch.randn(1, 9, WIDTH, dtype=dtype), torch.randn(1, 9, width, dtype=dtype)
    product = Product(layer)
    assert product.is_packed == (width == WIDTH)
    with torch.inference_mode():
        plain = layer(rows)
        assert (product(rows) - plain).abs().max() < bound
        assert (product.swish(rows) - silu(plain)).abs().max() < bound
        assert (product.times(rows, factors) - plain * factors).abs().max() < bound

"""Float32 rows and 16-bit weights as factors of a product of 16 bits, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cme_bench.util.exact_logits import product, wide_product
from cme_bench.util.narrowing import (
    Half,
    Way,
    gated,
    halved,
    halved_plainly,
    narrowed,
    narrowed_plainly,
    restored_plainly,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SIZES = (1e-30, 1e-6, 1e-3, 1.0, 300.0, 1e6, 1e30)
ONE, TWO, BRAIN = Way(torch.float16, 1), Way(torch.float16, 2), Way(torch.bfloat16, 2)


def rows_of_sizes(device: str, d: int = 96) -> Tensor:
    drawn = torch.randn(len(SIZES), d, generator=torch.Generator().manual_seed(0))
    return (drawn * torch.tensor(SIZES)[:, None]).to(device)


def worst(found: Tensor, wanted: Tensor) -> float:
    """Return the largest error of a row, as a share of the row."""
    return float(((found.double() - wanted).norm(dim=1) / wanted.norm(dim=1)).max())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("way", "lost"), [(ONE, 2.0**-11), (TWO, 2.0**-20), (BRAIN, 2.0**-15)])
def test_rows_of_any_size_keep_their_digits(way: Way, lost: float, device: str) -> None:
    torch.manual_seed(0)
    x, weight = rows_of_sizes(device), (torch.randn(64, 96) / 10).to(way.dtype).to(device)
    found = narrowed(x, way)
    assert found.parts.dtype == way.dtype
    assert found.parts.shape == (way.pieces * len(x), 96)
    assert all(map(torch.equal, found, narrowed_plainly(x, way)))
    restored = found.restored(product(found.parts, weight))
    assert torch.equal(restored, restored_plainly(product(found.parts, weight), found.scales))
    assert worst(restored, x.double() @ weight.double().T) < lost


@pytest.mark.parametrize("device", DEVICES)
def test_rows_within_the_range_are_rounded_as_they_are(device: str) -> None:
    x = rows_of_sizes(device)[2:5]
    found = narrowed(x, ONE)
    assert found.scales.tolist() == [1.0] * 3
    assert torch.equal(found.parts, x.half())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", [ONE, TWO, BRAIN])
def test_a_row_of_zeros_is_zero_and_what_is_no_number_stays_so(way: Way, device: str) -> None:
    x = torch.ones(4, 16, device=device)
    x[0], x[1, 3], x[2, 5] = 0.0, torch.nan, torch.inf
    found = narrowed(x, way)
    out = found.restored(product(found.parts, torch.ones(8, 16, dtype=way.dtype, device=device)))
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert not out[1:3].isfinite().any()
    assert torch.equal(out[3], torch.full_like(out[3], 16.0))
    assert narrowed(x[:0], way).parts.shape == (0, 16)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("d", [96, 17000])
def test_a_gate_is_that_of_float64_whatever_its_rows_are_times(d: int, device: str) -> None:
    scales = 2.0 ** torch.arange(-3.0, 4.0, device=device)
    gate, up = rows_of_sizes(device, d).clamp(-1e6, 1e6), rows_of_sizes(device, d).flip(0).clamp(-1e6, 1e6)
    found = gated(gate, up, scales, ONE)
    wide = (part.double() * scales[:, None] for part in (gate, up))
    wanted = torch.nn.functional.silu(next(wide)) * next(wide)
    assert worst(found.parts.double() * found.scales[:, None], wanted) < 2.0**-11
    gate[0, 1], up[1, 1] = torch.nan, torch.inf
    found = gated(gate, up, scales, ONE)
    assert not found.parts[0].isfinite().all()
    assert not found.parts[1].isfinite().all()
    assert found.parts[2:].isfinite().all()
    assert gated(gate[:0], up[:0], scales[:0], ONE).parts.shape == (0, d)


@pytest.mark.parametrize("device", DEVICES)
def test_halves_are_laid_out_alike_and_what_is_no_number_stays_so(device: str) -> None:
    x = torch.randn(2, 5, 3, 8, device=device).transpose(1, 2)
    x[0, 0, 0, :4] = torch.tensor([1e6, -1e6, torch.nan, torch.inf])
    found = halved(x)
    assert found.stride() == x.stride()
    assert found[0, 0, 0, :2].tolist() == [65504.0, -65504.0]
    assert found[0, 0, 0, 2].isnan()
    assert found[0, 0, 0, 3] == 65504.0
    assert torch.equal(found[1], x[1].half())
    for other in (x[:, :, :, ::2], x[:, 1:], x[:0], x[:1].expand(3, -1, -1, -1)):
        assert torch.equal(halved(other)[..., 3:], halved_plainly(other)[..., 3:])


@pytest.mark.parametrize("make", [Half.of, Half.at_once])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-7, 2e-2, 1.0, 1e6, 1e30])
def test_weights_of_any_size_are_float16_numbers(size: float, make: object) -> None:
    assert callable(make)
    weight = (size * torch.randn(40, 64, generator=torch.Generator().manual_seed(0))).bfloat16()
    found = make(weight)
    scale = 1.0 if found.scale is None else found.scale.double()
    assert found.numbers.dtype == torch.float16
    assert (found.numbers.double() * scale - weight.double()).norm() <= 2.0**-16 * weight.double().norm()
    assert found.is_of(weight)
    assert not found.is_of(2 * weight + 1)


def test_weights_of_two_sizes_keep_the_smaller_ones() -> None:
    weight = (3e-6 * torch.randn(40, 64, generator=torch.Generator().manual_seed(0))).bfloat16()
    weight[0, 0] = 1.0
    found = Half.of(weight)
    assert found.scale is not None
    small = (found.numbers.double() * found.scale.double() - weight.double())[1:]
    assert small.norm() <= 2.0**-16 * weight[1:].double().norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [1e-7, 2e-2, 1e6])
@pytest.mark.parametrize("rows", [1, 200, 500])
def test_the_product_is_that_of_float32_whatever_holds_the_weights(
    rows: int, size: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cme_bench.util.exact_logits.multiplies_halves", lambda x: True)
    torch.manual_seed(0)
    x, weight = 1e5 * torch.randn(rows, 64).to(device), (size * torch.randn(48, 64)).bfloat16().to(device)
    wanted = x.double() @ weight.double().T
    rounded = worst(product(x.bfloat16(), weight), wanted)
    for half in (None, Half.of(weight)):
        assert worst(wide_product(x, weight, half), wanted) < rounded / 5
        assert wide_product(x[:0], weight, half).shape == (0, 48)
    assert worst(wide_product(x, weight.float().clamp(-6e4, 6e4).half()), wanted) < 1

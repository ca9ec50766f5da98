"""Float32's product by bfloat16 pieces, against float64 and against float32's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cme_bench.util.float32_pieces import multiply, multiply_any, split, split_plainly, thirds, thrice

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def states(rows: int, d: int, device: str) -> Tensor:
    """As hidden states are: some are a thousand times as large as others."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(rows, d, generator=generator)
    return (drawn * (2 * torch.randn(rows, d, generator=generator)).exp()).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("d", [8, 72, 1536])
def test_the_pieces_sum_up_to_the_number(d: int, device: str) -> None:
    x = states(40, d, device)
    x[0] = 0.0
    x[1] *= 2.0**-90
    x[2] *= 2.0**90
    third, second, first = split(x).double().split(d, dim=1)
    assert torch.equal(first + second + third, x.double())
    assert torch.equal(split(x), split_plainly(x))
    assert torch.equal(split(x.T.contiguous().T), split_plainly(x))
    assert split(x[:0]).shape == (0, 3 * d)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [1, 200])
@pytest.mark.parametrize(("d", "n"), [(64, 100), (576, 1536), (1536, 576), (4096, 64)])
def test_the_product_is_as_exact_as_that_of_float32(d: int, n: int, rows: int, device: str) -> None:
    x, weight = states(rows, d, device), states(n, d, device).bfloat16().float()
    repeated = thrice(weight)
    assert repeated is not None
    wanted = x.double() @ weight.double().T
    size = wanted.square().mean().sqrt()
    error, plain = (
        (float((found.double() - wanted).square().mean().sqrt() / size))
        for found in (multiply(split(x), repeated), x @ weight.T)
    )
    print(f"{d} x {n} on {device}: {error:.1e}, float32 {plain:.1e}")
    if device == "cpu":
        assert error <= 4 * plain
    assert error <= 2e-9 * (d + 300)  # a GPU's units cut each sum off, where others round


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [1, 200])
@pytest.mark.parametrize(("d", "n"), [(64, 100), (576, 132), (1536, 132)])
def test_weights_of_all_digits_are_pieces_too(d: int, n: int, rows: int, device: str) -> None:
    x, weight = states(rows, d, device), states(n, d, device)
    whole, half, rest = thirds(weight)
    assert torch.equal(whole[:, :d].double() + half[:, :d].double() + rest.double(), weight.double())
    wanted = x.double() @ weight.double().T
    size = wanted.square().mean().sqrt()
    error, plain = (
        (float((found.double() - wanted).square().mean().sqrt() / size))
        for found in (multiply_any(split(x), (whole, half, rest)), x @ weight.T)
    )
    print(f"{d} x {n} on {device}: {error:.1e}, float32 {plain:.1e}")
    if device == "cpu":
        assert error <= 4 * plain
    assert error <= 4e-9 * (d + 300)  # a GPU's units cut six sums off, where others round


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("d", [8, 4096])
def test_the_product_of_no_rows_is_empty(d: int, device: str) -> None:
    repeated = thrice(torch.ones(5, d, device=device))
    assert repeated is not None
    assert multiply(split(torch.ones(0, d, device=device)), repeated).shape == (0, 5)


def test_other_weights_than_numbers_of_bfloat16_are_told_apart() -> None:
    weight = states(30, 16, "cpu").bfloat16().float()
    assert thrice(weight) is not None
    weight[29, 15] = weight[29, 15] * (1 + 2.0**-20) + 2.0**-30
    assert thrice(weight) is None
    weight[29, 15] = torch.nan
    assert thrice(weight) is None

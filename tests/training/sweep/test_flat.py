"""The numbers of adapters that are trained together: one optimizer step is that of each alone."""

from __future__ import annotations

import torch
from torch import nn

from cme_bench.training.schedule import BETAS, EPSILON
from cme_bench.training.sweep.flat import FlatParameters

SHAPES = {"a": (3, 4), "mixer": (2, 2), "b": (5, 3)}


def owners(count: int) -> list[dict[str, nn.Parameter]]:
    torch.manual_seed(0)
    return [{name: nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()} for _ in range(count)]


def test_steps_are_those_of_each_alone() -> None:
    """With clipping, a weight decay that spares a parameter, and rates that differ."""
    for count in (1, 3):
        mine, theirs = owners(count), owners(count)
        numbers = FlatParameters(mine, undecayed=frozenset({"mixer"}))
        decays, rates, most = [0.1, 0.0, 0.2][:count], [0.01, 0.02, 0.03][:count], 0.5
        alone = [
            torch.optim.AdamW(
                [
                    {"params": [own["a"], own["b"]], "weight_decay": decay},
                    {"params": [own["mixer"]], "weight_decay": 0.0},
                ],
                betas=BETAS,
                eps=EPSILON,
            )
            for own, decay in zip(theirs, decays, strict=True)
        ]
        for step in range(1, 5):
            numbers.grads.zero_()
            loss = sum((numbers.leaf(name) ** 2 * (step + i)).sum() for i, name in enumerate(SHAPES))
            assert isinstance(loss, torch.Tensor)
            loss.backward()
            numbers.adamw(step, rates, decays, ((numbers.norms() + 1e-6) / most).clamp(min=1.0))
            for own, optimizer, rate in zip(theirs, alone, rates, strict=True):
                optimizer.zero_grad()
                sum((own[name] ** 2 * (step + i)).sum() for i, name in enumerate(SHAPES)).backward()  # type: ignore[union-attr]
                nn.utils.clip_grad_norm_(own.values(), most)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
        for own, other in zip(mine, theirs, strict=True):
            for name in SHAPES:
                torch.testing.assert_close(own[name], other[name], rtol=1e-6, atol=1e-7)


def test_a_row_is_one_adapter_s_numbers_in_the_order_of_its_parameters() -> None:
    mine = owners(3)
    numbers = FlatParameters(mine, undecayed=frozenset())
    rows = [numbers.row(numbers.values, i) for i in range(3)]
    for own, row in zip(mine, rows, strict=True):
        assert torch.equal(row, torch.cat([own[name].detach().flatten() for name in SHAPES]))
    numbers.put_row(numbers.values, 1, rows[2])
    assert all(torch.equal(mine[1][name], mine[2][name]) for name in SHAPES)
    assert torch.equal(numbers.row(numbers.values, 0), rows[0])
    places = numbers.places(["mixer", "b"])
    assert places.shape == (3, 19)
    assert torch.equal(
        numbers.values[places][0], torch.cat([mine[0]["mixer"].flatten(), mine[0]["b"].flatten()])
    )

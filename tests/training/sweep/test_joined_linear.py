"""Updates added to the base's product, against the layers called one by one on rows of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cme_bench.adapters.routing.gate import GateSettings
from cme_bench.adapters.routing.narrow import Drop
from cme_bench.training.options import TrainOptions
from cme_bench.training.sweep import joint
from cme_bench.training.sweep.crew import Crew
from cme_bench.training.sweep.joined_linear import Gated, LowRank, Part, joined_linear
from cme_bench.training.sweep.shared import SharedLayer
from tests.training.sweep.test_crew import advance, base_of, members, pair

JOINED = ("lora", "adalora", "moslora", "moelora", "hydralora", "teamlora")
N, ROWS, LENGTH, D_IN, D_OUT, R, K = 2, 3, 5, 6, 7, 4, 3


@pytest.mark.slow
@pytest.mark.parametrize("method", JOINED)
def test_joined_and_apart_are_equal(
    method: str,
    options: Callable[..., TrainOptions],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut: list[int] = []
    own = SharedLayer._cut

    def counted(self: SharedLayer, x: Tensor, output: Tensor, parts: Any) -> Tensor:
        cut.append(len(parts))
        return own(self, x, output, parts)

    monkeypatch.setattr(SharedLayer, "_cut", counted)
    found = []
    for apart, form in enumerate((joint._form, lambda *_: None)):
        monkeypatch.setattr(joint, "_form", form)
        cut.clear()
        crew = Crew(
            base_of((asked := pair(options, method, tmp_path))[0]),
            members(asked),
            step=0,
            states={},
            bf16=False,
        )
        losses = advance(crew, 4)
        assert set(cut) == {apart}
        found.append((losses, [group.numbers.values.clone() for group in crew._together.groups]))
        crew.close()
    torch.testing.assert_close(*(each[0] for each in found), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*(each[1] for each in found), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("method", JOINED)
def test_the_probability_is_that_of_the_one_dropout_of_the_layer(
    method: str, dropout: float, options: Callable[..., TrainOptions], tmp_path: Path
) -> None:
    """As it is heard where the layer is called; a layer in inference drops nothing."""
    asked = pair(options, method, tmp_path, dropout=dropout)
    crew = Crew(base_of(asked[0]), members(asked), step=0, states={}, bf16=False)
    shared = next(m for m in crew._together._base.modules() if isinstance(m, SharedLayer))
    (one,) = shared._joints.values()
    x = torch.ones(1, 2, shared.layer.in_features)
    heard = [p for p, _ in one._drops.found(x, torch.zeros(1, 2, shared.layer.out_features))]
    assert heard == ([dropout] if dropout else [])
    assert joint.drop_probability(one.layer) == dropout
    one.layer.eval()
    assert joint.drop_probability(one.layer) == 0.0


def plain(x: Tensor, weights: Any, drop: Drop, settings: GateSettings | None) -> tuple[Tensor, Any]:
    """An update written again, [adapters, tokens, d_out], and its routing."""
    seen = x * drop.factor * drop.scale
    if settings is None:
        down, up = weights
        return seen @ down.mT @ up.mT, ()
    down, up, router, interaction = weights
    phi = (x @ router.mT).softmax(-1)
    omega = phi @ interaction.mT
    z = (seen @ down.mT).unflatten(-1, (K, R)) * omega[..., None] * settings.scale
    return z.flatten(-2) @ up.mT, (phi, omega)


def test_values_and_every_gradient() -> None:
    torch.manual_seed(0)
    double = {"dtype": torch.float64, "requires_grad": True}
    x = torch.randn(2 * N * ROWS + 1, LENGTH, D_IN, **double)
    linear = nn.Linear(D_IN, D_OUT, dtype=torch.float64).requires_grad_(False)
    settings = GateSettings(R, 1.5, False, torch.float64)
    low = [torch.randn(N, R, D_IN, **double), torch.randn(N, D_OUT, R, **double)]
    gated = [torch.randn(N, *shape, **double) for shape in ((K * R, D_IN), (D_OUT, K * R), (K, D_IN), (K, K))]
    drops = [Drop(torch.rand(N, ROWS * LENGTH, D_IN) > 0.3, 1 / 0.7) for _ in range(2)]
    slices = slice(0, N * ROWS), slice(N * ROWS, 2 * N * ROWS)  # the last row is nobody's
    parts = [
        Part(LowRank(), slices[0], N, tuple(low), drops[0]),
        Part(Gated(settings), slices[1], N, tuple(gated), drops[1], heard=True),
    ]
    y, [(phi, omega)] = joined_linear(x, linear.weight, linear.bias, parts)
    added, routings = zip(
        *(
            plain(x[rows].view(N, -1, D_IN), weights, drop, own)
            for rows, weights, drop, own in zip(slices, (low, gated), drops, (None, settings), strict=True)
        ),
        strict=True,
    )
    wanted = linear(x) + torch.cat(
        [*(each.reshape(-1, LENGTH, D_OUT) for each in added), x.new_zeros(1, LENGTH, D_OUT)]
    )
    outer, inner = torch.randn_like(wanted), torch.randn_like(phi)
    inputs = [x, *low, *gated]
    mine = torch.autograd.grad((y * outer).sum() + ((phi + 2 * omega) * inner).sum(), inputs)
    own_phi, own_omega = routings[1]
    theirs = torch.autograd.grad((wanted * outer).sum() + ((own_phi + 2 * own_omega) * inner).sum(), inputs)
    torch.testing.assert_close((y, phi, omega), (wanted, own_phi, own_omega))
    torch.testing.assert_close(mine, theirs)

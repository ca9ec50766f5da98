"""One adapter's kernels against the loop over tokens and experts, without a GPU: Triton interprets them."""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1, set before Triton is imported", allow_module_level=True)
pytest.importorskip("triton")

from cme_bench.vllm_plugin import expansion, kernels
from tests.support.gated_cases import SPECS
from tests.vllm_plugin.test_kernels import SHAPES, Layer


class Interpreted(Layer):
    """The layer in float32, on the CPU."""

    def apply(self, x: torch.Tensor, way: str, *, partial: bool = False, silu: bool = False) -> torch.Tensor:
        store, spec = self.store(kind=torch.float32, device="cpu"), self.spec
        spans = [edge for span in self.spans for edge in span]
        numbers = (spec.rank, spec.experts, spec.shared_latent, spec.scale, spec.normalizer_floor or 0.0)
        return kernels._gated_linear(
            x, store.matrix, store.interaction, store.part_of_grain, spans, len(self.weight), *numbers,
            kernels.WAYS.index(way), partial, False, silu,
        )  # fmt: skip


@pytest.mark.parametrize("tokens", [1, 17, 70])
@pytest.mark.parametrize("way", ["rows", "columns", "split", "gated"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECS)
def test_every_way_is_the_reference_interpreted(name: str, shape: str, way: str, tokens: int) -> None:
    torch.manual_seed(0)
    layer = Interpreted(SPECS[name], shape)
    x = torch.randn(tokens, layer.d_in)
    wanted = layer.exact(x)
    torch.testing.assert_close(layer.apply(x, way), wanted, atol=1e-4, rtol=1e-4)
    if shape == "halves":
        gate, up = wanted.chunk(2, dim=-1)
        activated = torch.nn.functional.silu(gate) * up
        torch.testing.assert_close(layer.apply(x, way, silu=True), activated, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", ["rows", "gated"])
@pytest.mark.parametrize("name", SPECS)
def test_logits_that_ranks_have_summed_are_the_ones_used(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank has a term of z and of the logits in what its own product gave."""
    torch.manual_seed(0)
    layer = Interpreted(SPECS[name], "halves")
    x = torch.randn(33, layer.d_in)
    store = layer.store(kind=torch.float32, device="cpu")
    summed = x @ store.router.T
    monkeypatch.setattr(expansion, "summed_over_ranks", lambda term: summed)
    torch.testing.assert_close(layer.apply(x, way, partial=True), layer.exact(x), atol=1e-4, rtol=1e-4)

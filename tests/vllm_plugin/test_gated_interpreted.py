"""One adapter's kernels against the loop over tokens and experts, without a GPU: Triton interprets them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

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

    def apply(
        self,
        x: torch.Tensor,
        way: str,
        *,
        partial: bool = False,
        total: bool = False,
        silu: bool = False,
        inputs: slice = slice(None),
    ) -> torch.Tensor:
        store = self.store(inputs, kind=torch.float32, device="cpu")
        flags = "partial " * partial + "total " * total + "silu " * silu
        return kernels._gated_linear(
            x, store.factor, store.matrix, store.interaction, store.part_of_grain,
            f"{flags}{way} {store.numbers}",
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


@pytest.mark.parametrize("way", ["rows", "gated", "columns", "split"])
@pytest.mark.parametrize("name", SPECS)
def test_a_layer_that_sums_up_its_ranks_itself_interpreted(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate that is computed after the sum sums up no logits again; one before it does, and the outputs."""
    torch.manual_seed(0)
    layer = Interpreted(SPECS[name], "halves")
    x = torch.randn(33, layer.d_in)
    halves = [slice(0, layer.d_in // 2), slice(layer.d_in // 2, None)]
    logits = x @ layer.store(kind=torch.float32, device="cpu").router.T
    terms: list[torch.Tensor] = []
    monkeypatch.setattr(expansion, "summed_over_ranks", lambda term: logits)
    monkeypatch.setattr(kernels, "summed_over_ranks", lambda term: terms.append(term) or term)
    layer.apply(x[:, halves[0]], way, partial=True, total=True, inputs=halves[0])
    monkeypatch.setattr(kernels, "summed_over_ranks", lambda term: term + terms[0])
    if way in {"rows", "gated"}:
        monkeypatch.setattr(expansion, "summed_over_ranks", lambda term: term * float("nan"))
    found = layer.apply(x[:, halves[1]], way, partial=True, total=True, inputs=halves[1])
    assert len(terms) == 1
    torch.testing.assert_close(found, layer.exact(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_an_operator_is_told_a_layer_s_numbers_exactly(name: str) -> None:
    layer = Interpreted(replace(SPECS[name], scale=1 / 3), "wide")
    spec, numbers = layer.spec, layer.store(device="cpu").numbers
    form = kernels.Form.read(f"partial silu columns {numbers}")
    assert (form.way, form.total, form.silu, form.d_out) == ("columns", False, True, len(layer.weight))
    assert list(form.spans) == layer.spans
    assert form.settings.partial
    assert not form.summed.partial
    for settings in (form.settings, form.summed):
        assert (settings.parts, settings.rank, settings.experts) == (2, spec.rank, spec.experts)
        assert settings.shared is spec.shared_latent
        assert (settings.scale, settings.floor) == (1 / 3, spec.normalizer_floor or 0.0)
    assert kernels.Form.read(f"partial silu columns {numbers}") is form
    with pytest.raises(ValueError, match="'colums': choose one of auto, rows"):
        kernels.Form.read(f"colums {numbers}")


def test_compiled_code_hands_the_operator_the_layer_s_own_matrix() -> None:
    """With any number of tokens, once compiled, and without a copy of what x is multiplied with."""
    layer = Interpreted(SPECS["teamlora"], "halves")
    stores = [layer.store(device="cpu") for _ in range(2)]
    own = [(store.matrix.data_ptr(), store.matrix.T.stride()) for store in stores]
    seen: list[tuple[int, tuple[int, tuple[int, ...]], str]] = []

    def write_down(*given: Any) -> torch.Tensor:
        x, factor, matrix, *_, form = given
        assert factor.data_ptr() == matrix.data_ptr()
        seen.append((len(x), (factor.data_ptr(), factor.stride()), form.split(" [", maxsplit=1)[0]))
        return kernels._gated_linear_shape(*given).zero_()

    def two_layers(x: torch.Tensor) -> torch.Tensor:
        first = stores[0].apply(x * 2, silu=True)
        return first.sum() + stores[1].apply(x + 1, partial=True, total=True).sum()

    with torch.library._scoped_library("cme_bench", "IMPL") as library, torch.inference_mode():
        library.impl("gated_linear", write_down, "CPU")
        compiled = torch.compile(two_layers, fullgraph=True, dynamic=True)
        for tokens in (3, 17):
            compiled(torch.ones(tokens, layer.d_in).bfloat16())
    for tokens, calls in ((3, seen[:2]), (17, seen[2:])):
        assert calls == [(tokens, own[0], "silu auto"), (tokens, own[1], "partial total auto")]


def test_the_interaction_is_float32_while_a_model_is_loaded_in_16_bits() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        store = Interpreted(SPECS["teamlora"], "wide").store(device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert store.interaction.dtype == torch.float32

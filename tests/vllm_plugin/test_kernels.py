"""The fused kernels against the loop over tokens and experts, on a GPU."""

from __future__ import annotations

import itertools
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from cme_bench.vllm_plugin.spec import GatedSpec
from tests.support.gated_cases import SPECS, random_tensors, update

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels need a CUDA GPU")

RANK = 16
TOLERANCE = 1e-2
"""Relative error by norm, in bfloat16."""
SHAPES = {"wide": (256, (128, 192)), "narrow": (512, (256,)), "halves": (256, (192, 192))}


class Layer:
    """Base weight and adapter of one layer in float32; d_in scaled so that sums are of the order of one."""

    def __init__(self, spec: GatedSpec, shape: str) -> None:
        self.spec = replace(spec, rank=RANK)
        self.d_in, outs = SHAPES[shape]
        self.weight = torch.randn(sum(outs), self.d_in) * self.d_in**-0.5
        self.parts = [random_tensors(self.spec, self.d_in, size, seed) for seed, size in enumerate(outs)]
        for part in self.parts:
            for name in ("down", "router"):
                if name in part:
                    part[name] *= self.d_in**-0.5
            part["up"] *= 0.2
        edges = [sum(outs[:i]) for i in range(len(outs) + 1)]
        self.spans = [(i, a, b) for i, (a, b) in enumerate(pairwise(edges))]

    def exact(self, x: Tensor) -> Tensor:
        y = x @ self.weight.T
        for (_, start, stop), part in zip(self.spans, self.parts, strict=True):
            y[:, start:stop] += update(x, part, self.spec)
        return y

    def store(
        self, inputs: slice = slice(None), *, kind: torch.dtype = torch.bfloat16, device: str = "cuda"
    ) -> Any:
        """Return the layer as vLLM holds it, of a slice of the inputs."""
        from cme_bench.vllm_plugin.kernels import Store

        store = Store.build(self.weight[:, inputs].to(device, kind), self.spans, self.spec)
        routed = self.spec.routed
        store.place(
            torch.cat([p["down"] for p in self.parts])[:, inputs],
            torch.cat([p["up"] for p in self.parts]),
            torch.cat([p["router"] for p in self.parts])[:, inputs] if routed else None,
            torch.stack([p["interaction"] for p in self.parts]) if self.spec.interaction else None,
        )
        return store


def assert_close(found: Tensor, wanted: Tensor) -> None:
    error = (found.float().cpu() - wanted).norm() / wanted.norm()
    assert error < TOLERANCE


@pytest.mark.parametrize("tokens", [1, 17, 70])
@pytest.mark.parametrize("way", ["rows", "columns", "split", "gated", "auto"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECS)
def test_every_way_is_the_reference(name: str, shape: str, way: str, tokens: int) -> None:
    torch.manual_seed(0)
    layer = Layer(SPECS[name], shape)
    x = torch.randn(tokens, layer.d_in).bfloat16()
    assert_close(layer.store().apply(x.cuda(), way), layer.exact(x.float()))


@pytest.mark.parametrize("way", ["rows", "columns", "split", "gated"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECS)
def test_two_ranks_with_a_slice_of_the_inputs_each(
    name: str, shape: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terms add up to the layer's output only if the softmax has seen the whole logits."""
    from cme_bench.vllm_plugin import expansion

    torch.manual_seed(0)
    layer = Layer(SPECS[name], shape)
    x = torch.randn(33, layer.d_in).bfloat16()
    half = layer.d_in // 2
    slices = [slice(0, half), slice(half, None)]
    stores = [layer.store(piece) for piece in slices]
    terms = [x[:, piece].cuda() @ store.router.T for piece, store in zip(slices, stores, strict=True)]
    total = (terms[0] + terms[1]).float()
    monkeypatch.setattr(expansion, "summed_over_ranks", lambda term: total)
    found = [s.apply(x[:, p].cuda(), way, partial=True) for p, s in zip(slices, stores, strict=True)]
    assert_close(found[0].float() + found[1].float(), layer.exact(x.float()))


@pytest.mark.parametrize("way", ["rows", "gated"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECS)
def test_a_layer_that_sums_up_its_ranks_itself(
    name: str, shape: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sum over ranks, of outputs, latents and logits at once; then every rank has the whole result."""
    from cme_bench.vllm_plugin import kernels

    torch.manual_seed(0)
    layer = Layer(SPECS[name], shape)
    x = torch.randn(33, layer.d_in).bfloat16()
    half = layer.d_in // 2
    slices = [slice(0, half), slice(half, None)]
    stores = [layer.store(piece) for piece in slices]
    own: list[Tensor] = []
    monkeypatch.setattr(kernels, "summed_over_ranks", lambda term: own.append(term) or term)
    stores[0].apply(x[:, slices[0]].cuda(), way, partial=True, total=True)
    monkeypatch.setattr(kernels, "summed_over_ranks", lambda term: term + own[0])
    found = stores[1].apply(x[:, slices[1]].cuda(), way, partial=True, total=True)
    assert len(own) == 1
    assert_close(found, layer.exact(x.float()))


@pytest.mark.parametrize(
    ("tokens", "d_in", "d_out", "total", "silu", "way"),
    [
        (1, 4096, 22016, False, True, "rows"),
        (2048, 4096, 22016, False, True, "gated"),
        (2048, 4096, 22016, False, False, "columns"),
        (2048, 11008, 4096, False, False, "split"),
        (2048, 5504, 4096, True, False, "gated"),
        (128, 5504, 4096, True, False, "rows"),
        (8192, 576, 3072, False, True, "rows"),
    ],
)
def test_the_way_goes_by_the_layer_s_work(
    tokens: int, d_in: int, d_out: int, total: bool, silu: bool, way: str
) -> None:
    from cme_bench.vllm_plugin.kernels import way_of

    assert way_of(tokens, d_in, d_out, total=total, silu=silu) == way


@pytest.mark.parametrize("tokens", [1, 17, 70])
@pytest.mark.parametrize("way", ["rows", "columns", "split", "gated"])
@pytest.mark.parametrize("name", SPECS)
def test_the_activation_after_a_layer_is_computed_with_it(name: str, way: str, tokens: int) -> None:
    torch.manual_seed(0)
    layer = Layer(SPECS[name], "halves")
    x = torch.randn(tokens, layer.d_in).bfloat16()
    store = layer.store()
    assert store.has_halves
    assert not Layer(SPECS[name], "wide").store().has_halves
    assert not Layer(SPECS[name], "narrow").store().has_halves
    gate, up = layer.exact(x.float()).chunk(2, dim=-1)
    found = store.apply(x.cuda(), way, silu=True)
    assert found.shape == gate.shape
    assert_close(found, torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("tokens", [1, 33, 300])
@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("name", SPECS)
def test_the_loop_over_columns_gives_the_same(name: str, ahead: int, gates: bool, tokens: int) -> None:
    """bfloat16 and float16, by the fast roundings; programs have one block of columns or some."""
    from cme_bench.vllm_plugin.expansion import Loop, Settings, Widened
    from cme_bench.vllm_plugin.reference import silu_and_mul

    torch.manual_seed(0)
    spec = replace(SPECS[name], experts=4 if SPECS[name].routed else 1)
    loop = Loop(64, 32, 4, (3, 2, 1)[ahead], ahead, 8, gates=gates)
    for shape, kind in itertools.product(("halves", "narrow"), (torch.bfloat16, torch.float16)):
        layer = Layer(spec, shape)
        x, store = torch.randn(tokens, layer.d_in).bfloat16(), layer.store(kind=kind)
        settings = Settings(
            len(layer.parts), RANK, spec.experts, spec.shared_latent, spec.scale, spec.normalizer_floor or 0.0
        )
        ext = x.to("cuda", kind) @ store.matrix[:, : layer.d_in].T
        held = Widened(ext, store.matrix, store.interaction, layer.d_in, len(layer.weight), settings)
        wanted = layer.exact(x.float())
        if shape == "halves":
            assert_close(held.silu_of_many(loop), silu_and_mul(wanted))
        else:
            assert_close(held.add_of_many(store.part_of_grain, loop), wanted)


@pytest.mark.parametrize("way", ["rows", "columns", "split", "gated"])
@pytest.mark.parametrize("name", SPECS)
def test_launches_that_are_kept_give_the_same_bits(name: str, way: str) -> None:
    from cme_bench.vllm_plugin import launches

    torch.manual_seed(0)
    layer = Layer(SPECS[name], "halves")
    store, x = layer.store(), torch.randn(70, layer.d_in).bfloat16().cuda()
    before = launches.are_kept()
    for silu in (False, True):
        for tokens in (70, 70, 1, 17, 1, 17, 65):
            found = store.apply(x[:tokens], way, silu=silu)
            launches.keep(False)
            wanted = store.apply(x[:tokens], way, silu=silu)
            launches.keep(before)
            assert torch.equal(found, wanted)


def test_a_trial_says_that_launches_may_be_kept_on_this_gpu() -> None:
    from cme_bench.vllm_plugin import launches, trials

    before = launches.are_kept()
    spec = replace(SPECS["teamlora"], rank=RANK)
    assert trials.launches_work(spec, torch.bfloat16, torch.device("cuda", torch.cuda.current_device()))
    assert launches.are_kept() is before


@pytest.mark.parametrize("name", SPECS)
def test_kernels_that_begin_early_wait_for_the_product(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers after one another in a CUDA graph, whose inputs change between replays."""
    from cme_bench.vllm_plugin import expansion

    torch.manual_seed(0)
    up, down = Layer(SPECS[name], "halves").store(), Layer(SPECS[name], "narrow").store()
    inputs = torch.randn(8, 70, 256).bfloat16().cuda()
    mixed = torch.randn(192, 512).bfloat16().cuda()

    def step(x: Tensor) -> Tensor:
        for _ in range(4):
            x = down.apply(up.apply(x, silu=True) @ mixed)
        return x

    wanted = [step(x) for x in inputs]
    monkeypatch.setattr(expansion, "_early_is_asked", lambda: True)
    assert torch.equal(step(inputs[0]), wanted[0])
    x, graph = inputs[0].clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(x)
    for given, right in zip(inputs, wanted, strict=True):
        x.copy_(given)
        graph.replay()
        assert torch.equal(found, right)

"""A float32 model whose products are computed by bfloat16 pieces, against the same model in plain float32."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from cme_bench.adapters import HydraLoraConfig, MoeLoraConfig, TeamLoraConfig
from cme_bench.adapters.routing import inference
from cme_bench.adapters.routing.layer import RoutedLinear
from cme_bench.engines import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.hf import HFEngine, piece_products
from cme_bench.engines.hf.kept_weights import why_too_much
from cme_bench.engines.hf.piece_products import PieceProducts
from cme_bench.util.float32_pieces import multiply, split
from tests.util.test_exact_logits import FAMILIES, build

HEAD = tuple(range(20, 40))
REQUESTS = [
    LoglikelihoodRequest(tuple(((*HEAD, 100 + q), (c, c + 1)) for c in range(5, 290, 40))) for q in range(3)
]
TEXTS = [GenerateRequest((*HEAD, 100 + i), 8) for i in range(3)]


def of_bfloat16(family: str) -> Any:
    """Return a small float32 model whose weights are bfloat16's numbers."""
    return build(family).bfloat16().float()


def scores(engine: HFEngine) -> list[float]:
    found = dict(engine.loglikelihood(REQUESTS))
    return [logprob for i in range(len(REQUESTS)) for logprob in found[i].logprobs]


def texts(engine: HFEngine) -> list[str]:
    found = dict(engine.generate(TEXTS))
    return [found[i].text for i in range(len(TEXTS))]


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes of weights that were multiplied by pieces, in the order of calls."""
    shapes: list[tuple[int, int]] = []

    def counted(pieces: Tensor, repeated: Tensor) -> Tensor:
        shapes.append((repeated.shape[0], repeated.shape[1] // 3))
        return multiply(pieces, repeated)

    monkeypatch.setattr(piece_products, "multiply", counted)
    return shapes


@pytest.mark.parametrize("family", FAMILIES)
def test_families_score_and_write_as_in_plain_float32(
    family: str, toy_tokenizer: PreTrainedTokenizerFast, multiplied: list[tuple[int, int]]
) -> None:
    model = of_bfloat16(family)
    plain = HFEngine(model, toy_tokenizer, max_length=64)
    assert "products" not in plain.describe()
    wanted, written = scores(plain), texts(plain)
    assert not multiplied
    engine = HFEngine(model, toy_tokenizer, max_length=64, pieces=True)
    if not any(type(part) is nn.Linear for part in model.modules()):
        assert engine.describe()["products"] == "float32: no linear layers of torch's own"
        return
    assert engine.describe()["products"] == "float32 by bfloat16 pieces"
    assert scores(engine) == pytest.approx(wanted, abs=1e-4)
    assert texts(engine) == written
    head = model.get_output_embeddings()
    assert tuple(head.weight.shape) in multiplied
    assert not any("forward" in part.__dict__ for part in model.modules())


ADAPTERS: dict[str, Any] = {
    "teamlora": TeamLoraConfig(r=4, num_experts=3, init="random", target_modules=["up_proj", "down_proj"]),
    "hydralora": HydraLoraConfig(r=4, num_experts=3, init="random", target_modules=["q_proj", "down_proj"]),
    "moelora": MoeLoraConfig(r=6, num_experts=3, init="random", target_modules=["up_proj", "down_proj"]),
    "lora": peft.LoraConfig(r=8, init_lora_weights=False, target_modules=["q_proj", "down_proj"]),
    "lora on the head": peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["lm_head", "up_proj"]),
    "dora": peft.LoraConfig(r=4, init_lora_weights=False, use_dora=True, target_modules=["up_proj"]),
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3),
    "saved": peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
}


@pytest.mark.parametrize("method", ADAPTERS)
def test_the_base_under_an_adapter_multiplies_by_pieces(
    method: str, toy_tokenizer: PreTrainedTokenizerFast, multiplied: list[tuple[int, int]]
) -> None:
    config = copy.deepcopy(ADAPTERS[method])
    config.task_type = "CAUSAL_LM"
    base = of_bfloat16("llama")
    linears = [part for part in base.modules() if type(part) is nn.Linear]
    torch.manual_seed(2)
    model = peft.get_peft_model(base, config).eval()
    for parameter in model.parameters():  # an adapter's own stay float32 whatever their numbers are
        parameter.data = parameter.data.bfloat16().float()
    wanted = scores(HFEngine(model, toy_tokenizer, max_length=64))
    engine = HFEngine(model, toy_tokenizer, max_length=64, pieces=True)
    assert scores(engine) == pytest.approx(wanted, abs=1e-4)
    assert {tuple(linear.weight.shape) for linear in linears} == set(multiplied)
    count = len(multiplied)
    engine._forward(torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.long), keep=1)
    with torch.inference_mode():
        engine._forward(torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.long), keep=1)
    again = len(multiplied) - count
    assert again == len(linears)  # each once where no gradients are kept, none of the adapter's


@pytest.mark.parametrize("method", ["teamlora", "hydralora", "moelora"])
def test_a_frozen_routed_adapter_meets_the_pieces_of_its_layers_input(
    method: str, toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    config = copy.deepcopy(ADAPTERS[method])
    config.task_type = "CAUSAL_LM"
    model = peft.get_peft_model(of_bfloat16("llama"), config).requires_grad_(False).eval()
    wanted = scores(HFEngine(model, toy_tokenizer, max_length=64))
    splits, products = [], []
    multiply_any = piece_products.multiply_any
    monkeypatch.setattr(piece_products, "split", lambda x: splits.append(1) or split(x))
    monkeypatch.setattr(
        piece_products, "multiply_any", lambda *given: products.append(1) or multiply_any(*given)
    )
    engine = HFEngine(model, toy_tokenizer, max_length=64, pieces=True)
    assert scores(engine) == pytest.approx(wanted, abs=1e-5)
    splits.clear(), products.clear()
    layers = model.get_base_model().config.num_hidden_layers
    with torch.inference_mode():
        engine._forward(torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.long), keep=1)
    assert len(products) == 2 * layers
    assert len(splits) == 4 * layers + 1, "as without the adapter"
    assert inference.narrow_product.get() is None

    monkeypatch.setattr(piece_products, "_right", set())
    monkeypatch.setattr(piece_products, "_why_wrong", lambda weight, multiplied, kind: kind or None)
    for layer in model.modules():
        if isinstance(layer, RoutedLinear):
            layer._matrices.clear()
    plain = HFEngine(model, toy_tokenizer, max_length=64, pieces=True)
    products.clear()
    assert scores(plain) == pytest.approx(wanted, abs=1e-5)
    assert not products, "its trial went wrong"


def test_layers_beside_each_other_split_what_they_share_once(
    toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: list[tuple[int, ...]] = []

    def counted(x: Tensor) -> Tensor:
        splits.append(tuple(x.shape))
        return split(x)

    monkeypatch.setattr(piece_products, "split", counted)
    config = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM")
    base = of_bfloat16("llama")
    layers = base.config.num_hidden_layers
    for model in (base, peft.get_peft_model(base, config)):
        engine = HFEngine(model, toy_tokenizer, pieces=True)
        splits.clear()
        with torch.inference_mode():
            engine._forward(torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.long), keep=1)
        assert len(splits) == 4 * layers + 1  # queries with keys and values, gate with up; each other alone
        assert engine._forward.pieces is not None
        assert engine._forward.pieces._once._last is None


def test_weights_of_more_digits_stay_as_they_are(
    toy_tokenizer: PreTrainedTokenizerFast, multiplied: list[tuple[int, int]]
) -> None:
    model = build("llama").float()
    wanted = scores(HFEngine(model, toy_tokenizer, max_length=64))
    with torch.no_grad():
        for layer in model.modules():
            if type(layer) is nn.Linear:
                layer.weight[0, 0] += 1e-5
    wanted = scores(HFEngine(model, toy_tokenizer, max_length=64))
    engine = HFEngine(model, toy_tokenizer, max_length=64, pieces=True)
    assert engine.describe()["products"] == "float32: no weights are bfloat16's numbers"
    assert scores(engine) == wanted
    assert not multiplied


@pytest.mark.parametrize("seen", [True, False])
def test_weights_that_change_are_not_multiplied_as_they_were(
    seen: bool, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = of_bfloat16("llama")
    first = HFEngine(model, toy_tokenizer, max_length=64, pieces=True)
    before = scores(first)
    up = model.model.layers[0].mlp.up_proj
    if seen:
        with torch.no_grad():
            up.weight.mul_(1.5)
        engine = first
    else:
        up.weight.data.mul_(1.5)  # as PEFT merges: torch does not tell of it
        engine = HFEngine(model, toy_tokenizer, max_length=64, pieces=True)
    after = scores(engine)
    assert after != pytest.approx(before, abs=1e-3)
    assert after == pytest.approx(scores(HFEngine(model, toy_tokenizer, max_length=64)), abs=1e-4)


def test_engines_of_one_base_share_the_copies_and_free_them() -> None:
    model = of_bfloat16("llama")
    first, second = PieceProducts(model, True), PieceProducts(model, True)
    up = model.model.layers[0].mlp.up_proj
    assert first._layers[up] is second._layers[up]
    del first, second
    assert id(up) not in piece_products._shelf._alive


def test_copies_take_a_part_of_the_free_memory_only() -> None:
    assert why_too_much(4 << 30, 10 << 30) is None
    because = why_too_much(41 << 30, 100 << 30)
    assert because == "copies of 41.0 GiB are too much for the 100.0 GiB that are free"


def test_a_trial_that_goes_wrong_keeps_float32_and_says_why(
    toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reduced(pieces: Tensor, repeated: Tensor) -> Tensor:
        return multiply(pieces, repeated).bfloat16().float()

    monkeypatch.setattr(piece_products, "_right", set())
    monkeypatch.setattr(piece_products, "multiply", reduced)
    model = of_bfloat16("llama")
    because = PieceProducts(model, True).plain_because
    assert because is not None
    assert because.startswith("a trial's error was ")
    told: list[str] = []
    engine = HFEngine(model, toy_tokenizer, pieces=True, note=told.append)
    assert told == [f"products are computed in plain float32, which is slower: {because}"]
    assert engine.describe()["products"] == f"float32: {because}"

    def refused(pieces: Tensor, repeated: Tensor) -> Tensor:
        raise RuntimeError("no such kernel\nat all")

    monkeypatch.setattr(piece_products, "multiply", refused)
    assert PieceProducts(model, True).plain_because == "a trial failed (RuntimeError: no such kernel)"


def test_only_a_gpu_computes_so_by_default(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    model = of_bfloat16("llama")
    assert PieceProducts(model, None).plain_because == piece_products.ONLY_A_GPU
    assert "products" not in HFEngine(model, toy_tokenizer).describe()
    told: list[str] = []
    off = HFEngine(model, toy_tokenizer, pieces=False, note=told.append)
    assert off.describe()["products"] == "float32: asked for"
    narrow = HFEngine(model.bfloat16(), toy_tokenizer, pieces=True, note=told.append)
    assert "products" not in narrow.describe()
    assert not told


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_so_by_default_and_replays_it(
    toy_tokenizer: PreTrainedTokenizerFast,
    multiplied: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(piece_products, "_WORTH", 0)
    monkeypatch.setattr(piece_products, "_FEW_ROWS", 1)
    model = of_bfloat16("llama").cuda()
    plain = HFEngine(model, toy_tokenizer, max_length=64, pieces=False)
    told: list[str] = []
    engine = HFEngine(model, toy_tokenizer, max_length=64, note=told.append)
    assert engine.describe()["products"] == "float32 by bfloat16 pieces"
    assert scores(engine) == pytest.approx(scores(plain), abs=1e-4)
    assert texts(engine) == texts(plain)
    assert multiplied
    assert not told

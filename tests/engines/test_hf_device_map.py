"""A base whose layers lie on several devices, or on disk: the same answers as from one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from cme_bench.adapters import TeamLoraConfig
from cme_bench.adapters.routing.hooks import routing_hooks
from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.hf.attention import AttentionCall
from cme_bench.engines.hf.tree_attention import KeptPrefix, PackAttention
from cme_bench.engines.plan import PlanLimits, plan_packs
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.load import load_model
from cme_bench.models.placement import check_covers, read_device_map
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.engine_source import EngineJob
from cme_bench.runs.options import ModelOptions, check_model
from cme_bench.util.errors import UsageError

CPU = torch.device("cpu")
PREFIX = tuple(range(10, 26))
ROWS = LoglikelihoodRequest(
    ((PREFIX, (5, 6)), (PREFIX, (7,)), ((*PREFIX, 30, 31), (8, 9, 10)), ((40, 41), (3,)))
)
TEXTS = [GenerateRequest((*PREFIX, 50), 5, ()), GenerateRequest((*PREFIX, 51, 52), 4, ())]
_PARTS = (
    "model.embed_tokens",
    "model.layers.0",
    "model.layers.1",
    "model.norm",
    "model.rotary_emb",
    "lm_head",
)
MAPS: dict[str, dict[str, Any]] = {
    "second layer": dict.fromkeys(_PARTS, "cpu") | {"model.layers.1": "disk"},
    "ends": dict.fromkeys(_PARTS, "cpu") | dict.fromkeys(("model.embed_tokens", "lm_head"), "disk"),
}
"""What lies on disk."""


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    config = TeamLoraConfig(r=2, num_experts=4, task_type="CAUSAL_LM", target_attention=True)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    folder = tmp_path_factory.mktemp("device map") / "teamlora"
    model.save_pretrained(folder)
    return folder


def answers(model: Path, adapter: Path | None, device_map: str | None) -> tuple[Any, ...]:
    options = ModelOptions(model=str(model), dtype="float32", device_map=device_map)
    with open_engines(options) as engines:
        engine = engines.open(
            engines.adapter(None if adapter is None else str(adapter)), EngineJob(64, 64, PREFIX)
        )
        ((_, scores),) = engine.loglikelihood([ROWS])
        texts = sorted(engine.generate(TEXTS))
        device = engine.describe()["device"]
        prefixes = engine.describe()["prefixes"]
        engines.release()
    return torch.tensor(scores.logprobs), [text.text for _, text in texts], device, prefixes


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("adapted", [False, True])
def test_layers_on_disk_answer_as_those_in_memory(
    name: str, adapted: bool, tiny_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    file = tmp_path / "map.json"
    file.write_text(json.dumps(MAPS[name]))
    found = answers(tiny_checkpoint, adapter if adapted else None, str(file))
    plain = answers(tiny_checkpoint, adapter if adapted else None, None)
    torch.testing.assert_close(found[0], plain[0], rtol=0, atol=1e-5)
    assert found[1] == plain[1]
    assert "disk" in found[2] and found[3] == "shared"


def test_an_adapter_beside_the_weights_leaves_those_on_disk(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Such a folder is loaded by links to the model's own files, which must stay."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "both")
    (folder / "adapter_config.json").write_text("{}")
    file = tmp_path / "map.json"
    file.write_text(json.dumps(MAPS["second layer"]))
    assert answers(folder, None, str(file))[1] == answers(tiny_checkpoint, None, None)[1]


def test_auto_on_a_machine_without_gpus_is_the_cpu(tiny_checkpoint: Path) -> None:
    found, plain = (answers(tiny_checkpoint, None, way) for way in ("auto", None))
    assert torch.equal(found[0], plain[0]) and found[1:] == plain[1:]


def test_routers_are_heard_on_every_layer(tiny_checkpoint: Path, adapter: Path) -> None:
    from cme_bench.adapters.load import load_adapter

    base = load_model(
        resolve_model(str(tiny_checkpoint)), torch.float32, CPU, device_map=MAPS["second layer"]
    )
    model = load_adapter(base, adapter)
    heard: list[str] = []
    with routing_hooks(model, lambda each: heard.append(each.layer)), torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    assert sum(".layers.1." in name for name in heard) == sum(".layers.0." in name for name in heard) > 0


def test_attention_stays_on_each_layers_own_device() -> None:
    """The device "meta" computes shapes alone, and like a GPU refuses tensors of another device."""
    limits = PlanLimits(pack_tokens=24, pack_scored=12, block_tokens=4, forward_tokens=1, kept_tokens=64)
    packs = list(plan_packs(list(ROWS.rows), limits))
    assert any(pack.cached for pack in packs)
    assert any(len(pack.units) > 1 for pack in packs)
    layers = {device: torch.nn.Identity() for device in ("cpu", "meta")}
    kept = KeptPrefix()
    for pack in packs:
        attend = PackAttention(pack, kept, CPU)
        for window in (None, 3):
            for device, layer in layers.items():
                query, key, value = (
                    torch.ones(1, heads, pack.n_tokens, 16, device=device) for heads in (4, 2, 2)
                )
                out = attend(AttentionCall(layer, query, key, value, window=window))
                assert out.device.type == device


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model.layers.9": "cpu"}', "the model has no module 'model.layers.9'"),
        ('{"model.layers": "cpu"}', "gives no device for model.embed_tokens.weight"),
        ('{"": "cuda:7"}', "is to lie on 'cuda:7'; devices here: (0, )*cpu, disk"),
        ('{"": 77}', "is to lie on 77; devices here: (0, )*cpu, disk"),
        ('{"": "gpu"}', "is to lie on 'gpu'"),
        ("{}", "names no module"),
        ("[1", "map.json"),
    ],
)
def test_maps_that_cannot_be_are_refused(
    content: str, message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "map.json"
    file.write_text(content)
    config = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).config
    with pytest.raises(UsageError, match=message):
        check_covers(str(file), config)


def test_other_engines_and_words_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'auto'"):
        read_device_map("atuo")
    with pytest.raises(UsageError, match="tensor_parallel=N"):
        check_model(ModelOptions(model="m", engine="vllm", device_map="auto"))
    with pytest.raises(UsageError, match="a ray worker has one GPU"):
        check_model(ModelOptions(model="m", engine="ray", device_map="auto"))

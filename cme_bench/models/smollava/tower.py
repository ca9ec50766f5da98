"""smollava's vision tower: a DINOv2 ViT-S/14 from an ONNX file, in the format of CLIP.

CLIP's vision model is what transformers' and vLLM's LLaVA both take. It computes what DINOv2 computes:

* Layer scale is folded into the linear layer before it.
* Every reader of the residual stream is a layer norm, which ignores a vector's mean. So whatever writes into
  the stream is centred, and all its vectors have mean 0.
* CLIP has a layer norm before the first block, DINOv2 has none. The stream gets one head's width of
  constants, +-BIG: they alone decide the norm's variance, so that the norm only scales, and its gain undoes
  that. It leaves the constants out: the added width is 0 from then on. A layer norm over (width + 64) numbers
  of which 64 are 0 differs by a known factor only, which its gain takes back.

Only that first norm rounds: by 1 part in 10^6 or so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cme_bench.models.smollava.onnx_file import OnnxWeights

if TYPE_CHECKING:
    import torch

LAYERS, INNER = 12, 1536
TRAINED_WIDTH, HEAD = 384, 64
WIDTH = TRAINED_WIDTH + HEAD
PATCH, SIZE = 14, 224
GRID = SIZE // PATCH
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TRAINED_GRID = 37
"""DINOv2's positions are of 518 px."""
_POSITIONS = "/backbone/embeddings/Reshape_1"
_CLASS_POSITION = "/backbone/embeddings/Concat_6"
_BIG = 512.0
_RATIO = TRAINED_WIDTH / WIDTH
"""Variance over the wider vector, as a part of that over the vector itself."""

VISION_CONFIG: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": WIDTH // HEAD,
    "num_channels": 3,
    "image_size": SIZE,
    "patch_size": PATCH,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6 * _RATIO,
    "attention_dropout": 0.0,
}


def clip_state(weights: OnnxWeights) -> dict[str, torch.Tensor]:
    """Return the state dict of transformers' ``CLIPVisionModel`` in float32.

    Linear weights are (out, in), as in torch; ``embeddings.position_embedding.weight`` is (257, 448).
    """
    state = _embeddings(weights) | _first_norm()
    for layer in range(LAYERS):
        state |= {f"encoder.layers.{layer}.{key}": value for key, value in _block(weights, layer).items()}
    return state | _norm(weights, "backbone.layernorm", "post_layernorm")


def _embeddings(weights: OnnxWeights) -> dict[str, torch.Tensor]:
    """Return patches, class token and positions, centred, the constants among the positions. CLIP's patches
    have no bias: it is added to their positions."""
    import torch

    name = "backbone.embeddings.patch_embeddings.projection"
    patches = torch.nn.functional.pad(
        _centred(_tensor(weights, f"{name}.weight")), (0, 0, 0, 0, 0, 0, 0, HEAD)
    )
    first = _torch(weights.factor(_CLASS_POSITION)).reshape(1, -1) + _tensor(
        weights, "backbone.embeddings.cls_token"
    ).reshape(1, -1)
    others = _positions(weights) + _tensor(weights, f"{name}.bias")
    constants = torch.full((1 + GRID * GRID, HEAD), _BIG)
    constants[:, ::2] = -_BIG
    positions = torch.cat([_centred(torch.cat([first, others]).T).T, constants], dim=1)
    return {
        "embeddings.patch_embedding.weight": patches,
        "embeddings.class_embedding": torch.zeros(WIDTH),
        "embeddings.position_embedding.weight": positions.contiguous(),
    }


def _first_norm() -> dict[str, torch.Tensor]:
    """Return the norm that only removes the constants."""
    import torch

    gain = torch.zeros(WIDTH)
    gain[:TRAINED_WIDTH] = _BIG * math.sqrt(HEAD / WIDTH)
    return {"pre_layrnorm.weight": gain, "pre_layrnorm.bias": torch.zeros(WIDTH)}


def _block(weights: OnnxWeights, layer: int) -> dict[str, torch.Tensor]:
    theirs, node = f"backbone.encoder.layer.{layer}", f"/backbone/encoder/layer.{layer}"
    readers = {
        "self_attn.q_proj": "attention.attention.query",
        "self_attn.k_proj": "attention.attention.key",
        "self_attn.v_proj": "attention.attention.value",
        "mlp.fc1": "mlp.fc1",
    }
    writers = {
        "self_attn.out_proj": ("attention.output.dense", "layer_scale1"),
        "mlp.fc2": ("mlp.fc2", "layer_scale2"),
    }
    state: dict[str, torch.Tensor] = {}
    for ours, name in readers.items():
        weight = _torch(weights.factor(f"{node}/{name.replace('.', '/')}/MatMul")).T
        rows = INNER if ours == "mlp.fc1" else WIDTH
        state[f"{ours}.weight"] = _padded(weight, rows, WIDTH)
        state[f"{ours}.bias"] = _padded(_tensor(weights, f"{theirs}.{name}.bias"), rows)
    for ours, (name, scale) in writers.items():
        factor = _tensor(weights, f"{theirs}.{scale}.lambda1")
        weight = _torch(weights.factor(f"{node}/{name.replace('.', '/')}/MatMul")).T * factor[:, None]
        bias = _tensor(weights, f"{theirs}.{name}.bias") * factor
        columns = INNER if ours == "mlp.fc2" else WIDTH
        state[f"{ours}.weight"] = _padded(_centred(weight), WIDTH, columns)
        state[f"{ours}.bias"] = _padded(_centred(bias), WIDTH)
    for number in (1, 2):
        state |= _norm(weights, f"{theirs}.norm{number}", f"layer_norm{number}")
    return state


def _norm(weights: OnnxWeights, theirs: str, ours: str) -> dict[str, torch.Tensor]:
    return {
        f"{ours}.weight": _padded(_tensor(weights, f"{theirs}.weight") * math.sqrt(_RATIO), WIDTH),
        f"{ours}.bias": _padded(_tensor(weights, f"{theirs}.bias"), WIDTH),
    }


def _positions(weights: OnnxWeights) -> torch.Tensor:
    """Return the positions of 16 x 16 patches, interpolated from 37 x 37 as transformers' DINOv2 does."""
    from torch.nn.functional import interpolate

    trained = _torch(weights.factor(_POSITIONS)).reshape(1, _TRAINED_GRID, _TRAINED_GRID, TRAINED_WIDTH)
    resized = interpolate(trained.permute(0, 3, 1, 2), size=(GRID, GRID), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(GRID * GRID, TRAINED_WIDTH)


def _centred(output: torch.Tensor) -> torch.Tensor:
    """Return weights, outputs first, whose outputs have mean 0."""
    return output - output.mean(dim=0, keepdim=True)


def _padded(tensor: torch.Tensor, *shape: int) -> torch.Tensor:
    """Return ``tensor`` in a larger shape, with zeros after it in every direction."""
    import torch

    larger = torch.zeros(shape, dtype=tensor.dtype)
    larger[tuple(slice(0, length) for length in tensor.shape)] = tensor
    return larger


def _tensor(weights: OnnxWeights, name: str) -> torch.Tensor:
    return _torch(weights.tensors[name])


def _torch(array: Any) -> torch.Tensor:
    import torch

    return torch.from_numpy(array.copy())

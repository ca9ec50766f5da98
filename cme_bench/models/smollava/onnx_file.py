"""Weights out of an ONNX file, read without the ``onnx`` package.

An ONNX file is a protobuf message: fields, each with a number and a wire type (ONNX's ``onnx.proto``,
protobuf's "Encoding"). Only what holds weights is read. The one file that this is for is pinned by its
sha256.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cme_bench.util.errors import CmeError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
"""Fields of ModelProto, and of GraphProto."""
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9
_INPUT, _NODE_NAME = 1, 3
_FLOAT32 = 1


@dataclass(frozen=True, slots=True)
class OnnxWeights:
    """``tensors``: the float32 initializers by name; ``inputs``: the names that each node takes, by its
    name. A multiplication's weight has no name of its own but stands among the inputs of its node."""

    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, list[str]] = field(default_factory=dict)

    def factor(self, node: str) -> np.ndarray:
        """Return the weight that the multiplication ``node`` multiplies by, (in, out). CmeError if there is
        none."""
        for name in self.inputs.get(node, ()):
            if name in self.tensors:
                return self.tensors[name]
        raise CmeError(f"the ONNX file has no weight at node {node!r}")


def read_onnx(file: Path) -> OnnxWeights:
    """Read the weights of ``file``. CmeError if it is no such file."""
    weights = OnnxWeights()
    try:
        for number, model_part in _fields(memoryview(file.read_bytes())):
            if number == _GRAPH and isinstance(model_part, memoryview):
                _read_graph(model_part, weights)
    except (IndexError, ValueError) as error:
        raise CmeError(f"{file}: not an ONNX file that can be read ({error})") from error
    return weights


def _read_graph(graph: memoryview, weights: OnnxWeights) -> None:
    for number, part in _fields(graph):
        if number == _INITIALIZER and isinstance(part, memoryview):
            _read_tensor(part, weights)
        elif number == _NODE and isinstance(part, memoryview):
            texts = [(n, bytes(v).decode()) for n, v in _fields(part) if isinstance(v, memoryview) and n <= 3]
            name = next((text for n, text in texts if n == _NODE_NAME), "")
            weights.inputs[name] = [text for n, text in texts if n == _INPUT]


def _read_tensor(message: memoryview, weights: OnnxWeights) -> None:
    shape: list[int] = []
    name, kind, raw = "", 0, memoryview(b"")
    for number, value in _fields(message):
        if number == _DIMS:
            shape += [value] if isinstance(value, int) else list(_varints(value))
        elif number == _DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == _TENSOR_NAME and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif number == _RAW_DATA and isinstance(value, memoryview):
            raw = value
    if kind == _FLOAT32 and raw:
        weights.tensors[name] = np.frombuffer(raw, dtype="<f4").reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field; a nested message, a text and packed numbers are bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            length, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(message):
            raise ValueError("it ends early")
        yield number, message[at : at + length]
        at += length


def _varints(packed: memoryview) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at

"""How a vision-language model reads images: its own processor, by Pillow on every machine.

The processor says which tokens an image becomes, and what the model is fed of its pixels. Its settings and
what computes them are part of the identity of answers: libraries resize differently.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import orjson

from cme_bench.engines.base import TokenIds
from cme_bench.engines.virtual import MOST_PLACES, image_key, real_ids
from cme_bench.images.image import Image
from cme_bench.util.auto_model import sees
from cme_bench.util.errors import CmeError, UsageError, first_line
from cme_bench.util.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

_OF_TEXT = frozenset(
    {
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "mm_token_type_ids",
        "labels",
        "text_replacement_offsets",
    }
)
"""What a processor returns of a prompt's text; the rest is of its images."""
_FRAME = ("vision_start_token_id", "vision_end_token_id")
"""Tokens that stand around an image in a chat of some families (Qwen-VL)."""
_NO_SETTING = frozenset({"name_or_path", "chat_template", "tokenizer", "processor_class", "video_processor"})
_ERRORS = (OSError, ValueError, TypeError, AttributeError, LookupError, ImportError, RuntimeError)
"""Errors of a processor whose files are missing, or do not fit its class."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Hold what the place of an image in a prompt becomes.

    ``text`` takes the place, with one image token for every run of them; ``runs``: how many each has.
    """

    text: str
    runs: tuple[int, ...]

    @property
    def places(self) -> int:
        """Return how many tokens of a prompt are the image's."""
        return sum(self.runs)


class Vision:
    """The processor of a vision-language model.

    Attributes:
        place: The model's folder, for messages.
        placeholder: The text that stands for an image in a prompt before the processor reads it.
        framed: The same with what stands around it in the model's own chats.
        token, token_id: Text and id of the token in whose place the model puts the features of an image.
        backend: The class that resizes, and what it computes with.
        fingerprint: sha256 of all settings that decide pixels and tokens.
    """

    def __init__(self, processor: Any, config: Any, place: str) -> None:
        self.processor, self.place = processor, place
        self._tokenizer = processor.tokenizer
        placeholder = getattr(processor, "image_token", None)
        token_id = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
        if placeholder is None or not isinstance(token_id, int):
            raise UsageError(f"{place}: its processor has no token for an image in a prompt")
        self.placeholder, self.token_id = str(placeholder), token_id
        self.framed = self._framed(config)
        self.token = str(self._tokenizer.convert_ids_to_tokens(token_id))
        resizer = type(processor.image_processor).__name__
        self.backend = f"{resizer} (Pillow {_pillow()})"
        self.fingerprint = hashlib.sha256(
            orjson.dumps(self._settings(), option=orjson.OPT_SORT_KEYS)
        ).hexdigest()
        self._layouts: dict[tuple[int, int], Layout] = {}

    def _framed(self, config: Any) -> str:
        ids = [getattr(config, name, None) for name in _FRAME]
        if not all(isinstance(i, int) for i in ids):
            return self.placeholder
        begin, end = self._tokenizer.convert_ids_to_tokens(ids)
        return f"{begin}{self.placeholder}{end}"

    def _settings(self) -> dict[str, Any]:
        own = {key: value for key, value in self.processor.to_dict().items() if key not in _NO_SETTING}
        read = {
            key: v for key, v in self.processor.image_processor.to_dict().items() if key not in _NO_SETTING
        }
        settings = {
            "processor": own,
            "image_processor": read,
            "by": type(self.processor.image_processor).__name__,
        }
        plain = orjson.dumps(settings, default=str, option=orjson.OPT_NON_STR_KEYS)
        return {"settings": orjson.loads(plain), "token": self.token_id, "placeholder": self.placeholder}

    def key(self, image: Image) -> int:
        """Return what virtual ids know an image by: its pixels, and how they are read."""
        return image_key(hashlib.sha256(f"{image.digest}:{self.fingerprint}".encode()).hexdigest())

    def layout(self, image: Image) -> Layout:
        """Return what an image becomes, which depends on its size alone. UsageError if it is too large."""
        size = image.width, image.height
        if size not in self._layouts:
            self._layouts[size] = self._laid_out(image)
        return self._layouts[size]

    def _laid_out(self, image: Image) -> Layout:
        output = self._read([image], return_text_replacement_offsets=True)
        [found] = output.get("text_replacement_offsets") or [[]]
        if len(found) != 1:
            raise UsageError(
                f"{self.place}: its processor does not say what it puts in the place of an image, as those "
                "of transformers 5.19 do; this model is evaluated on text alone"
            )
        whole = str(found[0]["replacement"])
        token = re.escape(self.token)
        runs = tuple(len(run.group()) // len(self.token) for run in re.finditer(f"(?:{token})+", whole))
        layout = Layout(re.sub(f"(?:{token})+", lambda _: self.token, whole), runs)
        if not 0 < layout.places <= MOST_PLACES:
            raise UsageError(
                f"{self.place}: an image of {image.width} x {image.height} pixels becomes {layout.places} "
                f"tokens of its prompt; at most {MOST_PLACES} can be (the processor's settings bound it)"
            )
        return layout

    def places(self, image: Image) -> int:
        """Return how many tokens an image takes."""
        return self.layout(image).places

    def inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        """Return what the model's forward takes beside the ids of a prompt with these images, in order."""
        import torch

        output = self._read(images)
        return {k: v for k, v in output.items() if k not in _OF_TEXT and isinstance(v, torch.Tensor)}

    def _read(self, images: Sequence[Image], text: str | None = None, **settings: Any) -> Any:
        prompt = self.placeholder * len(images) if text is None else text
        pixels = [image.pixels() for image in images]
        try:
            return self.processor(
                text=[prompt],
                images=pixels,
                return_tensors="pt",
                add_special_tokens=False,
                **settings,
            )
        except (*_ERRORS, AssertionError, ArithmeticError) as error:
            raise CmeError(
                f"{self.place}: its processor does not read an image of "
                f"{', '.join(f'{i.width} x {i.height}' for i in images)} pixels ({first_line(error)})"
            ) from error

    def check(self, text: str, images: Sequence[Image], ids: TokenIds) -> None:
        """Raise UsageError unless ``ids`` are those that the processor itself makes of a prompt, but for the
        special tokens that begin it."""
        own = self._read(images, text)["input_ids"][0].tolist()
        if list(real_ids(ids, self.token_id)) != own:
            raise UsageError(
                f"{self.place}: its processor changes more of a prompt than the places of images, so its "
                "tokens cannot be told beforehand; this model is evaluated on text alone"
            )


def load_vision(folder: Path, config: Any, tokenizer: Any) -> Vision:
    """Return how the vision-language model in ``folder`` reads images.

    Parts for video and sound are left out. UsageError if the processor's files are missing or do not fit.
    """
    from transformers import AutoImageProcessor

    try:
        cls = _without_videos(_processor_class(folder, config))
        settings, _ = cls.get_processor_dict(str(folder))
        reads = AutoImageProcessor.from_pretrained(str(folder), backend="pil", trust_remote_code=False)
        parts = {"image_processor": reads, "tokenizer": tokenizer}
        processor = cls.from_args_and_dict([parts.get(name) for name in cls.get_attributes()], dict(settings))
    except _ERRORS as error:
        raise UsageError(
            f"{folder}: its processor of images cannot be loaded ({first_line(error)})"
        ) from error
    return Vision(processor, config, str(folder))


def vision_of(folder: Path, config: Any, tokenizer: Any) -> Vision | None:
    """Return how the model in ``folder`` reads images; None if it takes text alone. Raises as ``load_vision``
    does."""
    return load_vision(folder, config, tokenizer) if sees(config) else None


def _processor_class(folder: Path, config: Any) -> Any:
    """Return the class that the folder's files name, else that of the model type."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

    files = [
        folder / f"{name}.json" for name in ("processor_config", "preprocessor_config", "tokenizer_config")
    ]
    named = [read_json(file).get("processor_class") for file in files if file.is_file()]
    names = [
        name for name in (*named, PROCESSOR_MAPPING_NAMES.get(config.model_type)) if isinstance(name, str)
    ]
    found = processor_class_from_name(names[0]) if names else None
    if found is None:
        raise ValueError("transformers has no class for it")
    return found if found.__module__ in sys.modules else _class_by_pillow(names[0], PROCESSOR_MAPPING_NAMES)


def _class_by_pillow(name: str, known: Mapping[str, Any]) -> Any:
    """Return a processor's class whose module asks for torchvision (Pixtral's): of its image processor's
    module it wants functions that the twin for Pillow has as well. ImportError if that does not do."""
    for kind in (kind for kind, named in known.items() if named == name):
        package = f"transformers.models.{kind}"
        if importlib.util.find_spec(f"{package}.image_processing_pil_{kind}") is None:
            continue
        wanted = f"{package}.image_processing_{kind}"
        twin = importlib.import_module(f"{package}.image_processing_pil_{kind}")
        with _in_place_of(wanted, twin):
            return getattr(importlib.import_module(f"{package}.processing_{kind}"), name)
    raise ImportError(f"transformers needs torchvision for {name}, which is not installed")


@contextmanager
def _in_place_of(name: str, module: ModuleType) -> Iterator[None]:
    """Have ``module`` imported by another name in the block."""
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


@functools.cache
def _without_videos(cls: Any) -> Any:
    """Return a processor's class that takes None for a part that is not needed: those of videos ask for
    torchvision, and SmolVLM's for the package num2words, with which it writes a video's number of frames."""
    module = sys.modules[cls.__module__]
    if getattr(module, "num2words", "") is None:
        module.__dict__["num2words"] = str

    def check(self: Any, name: str, part: Any) -> Any:
        return None if part is None else cls.check_argument_for_proper_class(self, name, part)

    return type(
        cls.__name__, (cls,), {"check_argument_for_proper_class": check, "__module__": cls.__module__}
    )


def _pillow() -> str:
    import PIL

    return str(PIL.__version__)

"""Images in the place of their virtual ids: the features of each are computed once for all its questions.

The model's own code makes them: a short row with the image goes through it up to its language model, which
is not run, and the embeddings that it would get are kept. In a later forward they replace the embeddings of
the virtual ids, so packs, prefixes, caches and adapters need not know of images.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cme_bench.engines.hf.batching import is_out_of_memory
from cme_bench.engines.packs import Ints
from cme_bench.engines.reader import ImageReader
from cme_bench.engines.requests import Request
from cme_bench.engines.virtual import VIRTUAL, key_of, keys_in, place_of, virtual_ids
from cme_bench.images.image import Image
from cme_bench.util.errors import CmeError, UsageError, first_line

_TYPES = ("token_type_ids", "mm_token_type_ids")
"""Arguments that tell a model which tokens are an image's."""
_PLACES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
"""Settings of a model that name the tokens which it looks for, to put pictures in their place."""
_KEPT_BYTES = {"cpu": 1 << 30, "cuda": 4 << 30}
_TOWER_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 15}
"""Tokens of images that are computed in one forward of a tower."""


class _ReachedError(Exception):
    """The language model is reached."""


@contextmanager
def taking_images() -> Iterator[None]:
    """Say in one line that a model does not take what its processor makes of images. UsageError; memory that
    runs out is no such thing."""
    try:
        yield
    except (ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise UsageError(
            f"the model does not take images as its processor makes them ({first_line(error)}); do the files "
            "of the processor belong to it?"
        ) from error


class Images:
    """Hold the images of the requests in work, and the features of some, up to a bound of memory.

    Attributes:
        apart: Whether each image goes through its tower by itself: a layer may see more than a token.
        computed: Images whose features were computed, those that were computed again included.
    """

    def __init__(self, model: Any, reader: ImageReader, device: torch.device) -> None:
        self.base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.reader = reader
        self._device = device
        self._known: dict[int, Image] = {}
        self._order: list[int] = []
        self._features: OrderedDict[int, Tensor] = OrderedDict()
        self._inputs: tuple[tuple[int, ...], Mapping[str, Tensor]] | None = None
        kind = "cuda" if device.type == "cuda" else "cpu"
        self._most_bytes, self._most_tokens = _KEPT_BYTES[kind], _TOWER_TOKENS[kind]
        self.computed = 0
        self.apart = False

    def expect(self, requests: Iterable[Request]) -> None:
        """Know the images of ``requests``, which are asked next. CmeError if two share a key."""
        self.know(image for request in requests for image in request.images)

    def know(self, images: Iterable[Image]) -> None:
        """Know ``images`` and no others. CmeError if two share a key."""
        known: dict[int, Image] = {}
        for image in dict.fromkeys(images):
            key = self.reader.key(image)
            if key in known:
                raise CmeError(f"two images have the same key in this run: {known[key]} and {image}")
            known[key] = image
        self._known, self._order = known, sorted(known)

    @property
    def first(self) -> Image | None:
        """Return one of the images in work."""
        return next(iter(self._known.values()), None)

    def ids(self, image: Image) -> tuple[int, ...]:
        """Return the virtual ids of an image."""
        return virtual_ids(self.reader.key(image), 0, self.reader.places(image))

    @property
    def types(self) -> list[str]:
        """Return the arguments by which the model wants to be told which tokens are an image's."""
        accepted = inspect.signature(self.base.forward).parameters
        return [name for name in _TYPES if name in accepted]

    def arguments(self, ids: Tensor) -> dict[str, Tensor]:
        """Return what the model's own forward takes for a row of ``ids`` [1, n] that holds virtual ids."""
        virtual = ids >= VIRTUAL
        keys = tuple(keys_in(ids[0].tolist()))
        if self._inputs is None or self._inputs[0] != keys:
            self._inputs = keys, self.reader.inputs([self._known[key] for key in keys]) if keys else {}
        own = {name: tensor.to(self._device) for name, tensor in self._inputs[1].items()}
        plain = ids.masked_fill(self._named_as_text(ids), self._no_place)
        own["input_ids"] = plain.masked_fill(virtual, self.reader.token_id).to(self._device)
        if keys:
            own |= {name: virtual.long().to(self._device) for name in self.types}
        return self._cast(own)

    @contextmanager
    def as_text(self, ids: Tensor) -> Iterator[None]:
        """Let tokens of ``ids`` [1, n] that only name an image be text in a forward with ``arguments``.

        A model looks for its images by such tokens, and counts them: it is fed another id for each that no
        image has, and its language model the embedding of the id that stands there. What a model remembers
        of its images' positions (Qwen-VL) is forgotten afterwards.
        """
        try:
            with self._put_as_text(ids, self._named_as_text(ids)):
                yield
        finally:
            for module in self.base.modules():  # text that follows has no images before it
                if getattr(module, "rope_deltas", None) is not None:
                    module.rope_deltas = None

    @contextmanager
    def _put_as_text(self, ids: Tensor, named: Tensor) -> Iterator[None]:
        if not named.any():
            yield
            return
        with torch.inference_mode():
            embedded = self.base.get_input_embeddings()(ids[named].to(self._device))
        places = named.to(self._device)

        def put(module: nn.Module, fed: tuple[Any, ...], given: dict[str, Any]) -> Any:
            states = given.get("inputs_embeds")
            if states is None:
                raise CmeError("the model does not hand its images to its language model as embeddings")
            states = states.clone()
            own = states[:, -places.shape[1] :]  # an adapter's virtual tokens come first
            own[places.to(own.device)] = embedded.to(own.device, own.dtype)
            return fed, given | {"inputs_embeds": states}

        hook = language_model(self.base).register_forward_pre_hook(put, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def _named_as_text(self, ids: Tensor) -> Tensor:
        """Return which of ``ids`` are tokens that stand for images elsewhere."""
        return torch.isin(ids, torch.tensor(sorted(self._place_ids), device=ids.device))

    @functools.cached_property
    def _place_ids(self) -> set[int]:
        named = (getattr(self.base.config, name, None) for name in _PLACES)
        return {self.reader.token_id, *(token for token in named if isinstance(token, int))}

    @functools.cached_property
    def _no_place(self) -> int:
        """Return an id that stands for no image."""
        return next(i for i in itertools.count() if i not in self._place_ids)

    def _cast(self, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        dtype = self.base.dtype
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in arguments.items()}

    @contextmanager
    def placed(self, ids: Tensor | Ints) -> Iterator[None]:
        """Put images in the place of the virtual ids of one forward, which is fed ``ids``."""
        host = ids if isinstance(ids, np.ndarray) else ids.cpu().numpy()
        virtual = host[host >= VIRTUAL]
        if not virtual.size:
            yield
            return
        features = self._rows(virtual)
        embedding: nn.Module = self.base.get_input_embeddings()
        hooks = (
            embedding.register_forward_pre_hook(self._hide),
            embedding.register_forward_hook(lambda module, fed, out: _filled(self._virtual, out, features)),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hide(self, module: nn.Module, fed: tuple[Any, ...]) -> tuple[Any, ...]:
        ids, *rest = fed
        self._virtual = ids >= VIRTUAL
        return (ids.masked_fill(self._virtual, self.reader.token_id), *rest)

    def _rows(self, virtual: Ints) -> Tensor:
        """Return the features [n, hidden] of virtual ids, one a row."""
        images, places = key_of(virtual), place_of(virtual)
        distinct, index = np.unique(images, return_inverse=True)
        tables = self._tables([int(key) for key in distinct])
        starts = np.cumsum([0, *(len(table) for table in tables)])[:-1]
        rows = torch.from_numpy(starts[index] + places).to(tables[0].device)
        return torch.cat(tables)[rows]

    def features(self, images: Sequence[Image]) -> list[Tensor]:
        """Return what the language model is fed for each of ``images``, which are known, [tokens, hidden]."""
        return self._tables([self.reader.key(image) for image in images])

    def _tables(self, keys: Sequence[int]) -> list[Tensor]:
        """Return the features of images [tokens, hidden] each; compute those that are not held."""
        held = {key: self._features[key] for key in keys if key in self._features}
        missing = [key for key in keys if key not in held]
        while missing:
            for key, table in self._compute(self._together(missing)).items():
                self._features[key] = table
                held[key] = table
            missing = [key for key in missing if key not in held]
        for key in keys:
            self._features[key] = held[key]
            self._features.move_to_end(key)
        size = sum(t.numel() * t.element_size() for t in self._features.values())
        while size > self._most_bytes and len(self._features) > 1:
            _, table = self._features.popitem(last=False)
            size -= table.numel() * table.element_size()
        return [held[key] for key in keys]

    def _together(self, missing: Sequence[int]) -> list[int]:
        """Return images to compute in one go: ``missing`` ones first, then those that come next."""
        if self.apart:
            return [missing[0]]
        later = [key for key in self._order if key > max(missing) and key not in self._features]
        chosen: list[int] = []
        tokens = 0
        for key in dict.fromkeys((*missing, *later)):
            tokens += self.reader.places(self._known[key])
            if chosen and tokens > self._most_tokens:
                break
            chosen.append(key)
        return chosen

    @torch.inference_mode()
    def _compute(self, keys: Sequence[int]) -> dict[int, Tensor]:
        """Return the features of images, those whose inputs have one shape in one forward."""
        groups: dict[Any, list[tuple[int, Mapping[str, Tensor]]]] = {}
        for key in keys:
            image = self._known[key]
            inputs = self.reader.inputs([image])
            shapes = tuple(sorted((name, tuple(tensor.shape)) for name, tensor in inputs.items()))
            groups.setdefault((self.reader.places(image), shapes), []).append((key, inputs))
        features: dict[int, Tensor] = {}
        for (places, _), group in groups.items():
            together = {name: torch.cat([inputs[name] for _, inputs in group]) for name in group[0][1]}
            rows = self._embedded(len(group), places, together)
            features |= {key: row.clone() for (key, _), row in zip(group, rows, strict=True)}
        self.computed += len(keys)
        return features

    def _embedded(self, rows: int, places: int, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return [rows, places, hidden]: what the language model is fed for rows of one image each."""
        ids = torch.full((rows, places), self.reader.token_id)
        arguments: dict[str, Any] = {**inputs, "input_ids": ids}
        arguments |= {name: torch.ones_like(ids) for name in self.types}
        arguments = self._cast({name: tensor.to(self._device) for name, tensor in arguments.items()})
        found: list[Tensor] = []

        def stop(module: nn.Module, fed: tuple[Any, ...], named: dict[str, Any]) -> None:
            found.append(named["inputs_embeds"])
            raise _ReachedError

        hook = language_model(self.base).register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with taking_images():
                self.base(**arguments, use_cache=False)
        except _ReachedError:
            return found[0]
        finally:
            hook.remove()
        raise CmeError("the model does not hand its images to its language model as embeddings")


def language_model(base: Any) -> nn.Module:
    """Return the part of a model that holds its input embeddings: its language model."""
    embedding = base.get_input_embeddings()
    parts: Iterator[nn.Module] = base.modules()
    for module in parts:
        if any(child is embedding for child in module.children()):
            return module
    raise CmeError("the model has no part that holds its input embeddings")


def _filled(virtual: Tensor, embedded: Tensor, features: Tensor) -> Tensor:
    """Return ``embedded`` [..., hidden] with ``features`` in the places that are ``virtual``, in order."""
    places = virtual.to(embedded.device)[..., None]
    return embedded.masked_scatter(places, features.to(embedded.device, embedded.dtype))

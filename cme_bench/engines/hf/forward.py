"""One forward of any causal LM on left padded rows, with logits only where they are needed."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cme_bench.engines.hf.images import Images, language_model, taking_images
from cme_bench.engines.hf.piece_products import PieceProducts
from cme_bench.engines.hf.quick_norms import QuickNorms
from cme_bench.engines.hf.quick_rotary import QuickRotary
from cme_bench.engines.hf.tree_kernel import Factors
from cme_bench.engines.hf.wide_states import WideStates, why_narrow
from cme_bench.engines.packs import Ints
from cme_bench.util.devices import is_spread
from cme_bench.util.errors import first_line
from cme_bench.util.exact_logits import NARROW, exact_logits, is_rounded, output_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DEFAULT_MAX_LENGTH = 2048
_TRIED = 100
"""Half of the tokens with which wide hidden states are tried on a GPU, and how many different ids."""
_FAR = 0.25
"""Most that log-probabilities of wide states may be from rounded ones, as a share of their spread. Rounding
makes a few hundredths of it."""
_PLACED, _APART = 8, 0.01
"""Tokens on which positions are tried, and the most that logits may move, as a share of their spread: the
same products on the same numbers."""
_NARROW = "narrow"
"""The verdict why hidden states have 16 bits."""
_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


def base_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return the transformers model below a PeftModel, or ``model`` itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model


def max_positions(config: Any) -> int:
    """Return how many positions ``config`` allows; 2048 when it does not say."""
    text = config.get_text_config(decoder=True)
    for field in _LENGTH_FIELDS:
        value = getattr(text, field, None)
        if isinstance(value, int) and value > 0:
            return value
    return _DEFAULT_MAX_LENGTH


def left_pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return ``(ids, mask)``, both int64 [rows, longest] on CPU; id 0 under mask 0 pads on the left."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


class CausalForward:
    """Call ``model`` with the arguments that its own forward takes.

    The model's forward computes the logits, so scaling and soft-capping stay as the model defines them; its
    output layer gives float32 (:mod:`cme_bench.util.exact_logits`), and so do its layers where they can
    (:mod:`cme_bench.engines.hf.wide_states`). ``rounded``: whether a model that treats its logits in some
    other way rounded them all the same; known after the first logits. ``spread``: whether its layers lie on
    several devices. ``images``: what puts images in the place of their virtual ids. ``wide``: whether hidden
    states of a 16-bit model are float32. ``pieces``: whether a float32 model multiplies by
    :mod:`cme_bench.engines.hf.piece_products`; None where the device decides. ``positions``: what an earlier
    trial of the base model found of ``takes_positions``; None for none. ``verdicts``: what earlier trials of
    this model found; those of this one are added.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        images: Images | None = None,
        *,
        wide: bool = True,
        pieces: bool | None = False,
        positions: bool | None = None,
        verdicts: dict[str, Any] | None = None,
    ) -> None:
        if positions is not None:
            self.__dict__["takes_positions"] = positions
        self._verdicts = {} if verdicts is None else verdicts
        self._asked_wide = wide
        self._asked_pieces = pieces
        self.model = model
        self.device = device
        self.images = images
        self.spread = is_spread(base_model(model))
        accepted = inspect.signature(base_model(model).forward).parameters
        self._accepts_positions = "position_ids" in accepted
        self._takes_keep = "logits_to_keep" in accepted
        self._dtype: torch.dtype = base_model(model).dtype
        self.rounded: bool | None = None if self._dtype in NARROW else False
        if images is not None:
            _ = self.takes_positions  # tried before ids stand for images

    def __call__(
        self, ids: Tensor, mask: Tensor, *, keep: int, cache: Any = None, use_cache: bool = False
    ) -> tuple[Tensor, Any]:
        """Return ``(logits, cache)``: [rows, keep, vocab] of the last ``keep`` tokens of ``ids`` [rows, n].

        ``mask`` [rows, cached + n] is 0 on padding; positions count from each row's first real token.
        """
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": use_cache}
        if cache is not None:
            arguments["past_key_values"] = cache
        if self.takes_positions:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            arguments["position_ids"] = positions[:, -ids.shape[1] :]
        if self._takes_keep:
            arguments["logits_to_keep"] = keep
        output = self._run(arguments)
        cache = getattr(output, "past_key_values", None) if use_cache else None
        return output.logits[:, -keep:], cache

    def alone(
        self,
        ids: Tensor,
        *,
        keep: int,
        cache: Any = None,
        more: Mapping[str, Any] | None = None,
        use_cache: bool = False,
    ) -> tuple[Tensor, Any]:
        """Return ``(logits, cache)`` as ``__call__``, of one row, by PEFT's own way from ids and ``more``.

        A PeftModel puts its virtual tokens before the ids, and a cache holds those.
        """
        arguments: dict[str, Any] = {"input_ids": ids, "use_cache": use_cache, **(more or {})}
        model = self.model
        if cache is not None:
            arguments["past_key_values"] = cache
            if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
                model = base_model(model)
        if self._takes_keep:
            arguments["logits_to_keep"] = keep
        output = self._run(arguments, model)
        return output.logits[:, -keep:], getattr(output, "past_key_values", None) if use_cache else None

    def uncached(self, ids: Tensor, positions: Tensor, keep: int | Tensor) -> Tensor:
        """Return logits [rows, kept, vocab] of ``ids`` [rows, n] at ``positions`` [rows, n].

        The model has neither a cache nor a mask of its own. Kept are the last ``keep`` tokens, or those whose
        indices a tensor gives.
        """
        arguments: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "use_cache": False}
        if self._takes_keep:
            arguments["logits_to_keep"] = keep
        logits: Tensor = self._run(arguments).logits
        if self._takes_keep:
            return logits
        return logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]

    @functools.cached_property
    def configs(self) -> list[Any]:
        """The configurations that the model's modules read."""
        found = (getattr(module, "config", None) for module in base_model(self.model).modules())
        return list({id(config): config for config in found if config is not None}.values())

    def seeing(self, ids: Tensor | Ints) -> contextlib.AbstractContextManager[None]:
        """Return the context in which ``ids`` may hold the virtual ids of images."""
        return contextlib.nullcontext() if self.images is None else self.images.placed(ids)

    def own(self, ids: Tensor, *, keep: int) -> Tensor:
        """Return logits [1, keep, vocab] of one row with images, by the model's own forward from pixels."""
        assert self.images is not None
        arguments: dict[str, Any] = {**self.images.arguments(ids), "use_cache": False}
        if self._takes_keep:
            arguments["logits_to_keep"] = keep
        with taking_images(), self.images.as_text(ids):
            logits: Tensor = self._run(arguments).logits
        return logits[:, -keep:]

    def tried(self) -> CausalForward:
        """Return itself, once all is tried that is otherwise tried within the first forward."""
        _ = self.takes_positions, self.narrow_because
        return self

    @functools.cached_property
    def takes_positions(self) -> bool:
        """Whether positions that count from 0 are the model's own; RoBERTa's begin behind its padding's id.

        Tried on some tokens, which must have the logits that they have without positions.
        """
        if not self._accepts_positions:
            return False
        model = base_model(self.model)
        length = min(_PLACED, max_positions(model.config))
        ids = torch.arange(4, 4 + length, device=self.device)[None]
        ids = ids.remainder(model.get_input_embeddings().weight.shape[0])
        fed: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        placed = {**fed, "position_ids": torch.arange(length, device=self.device)[None]}
        try:
            with torch.inference_mode(), exact_logits(model):
                own, ours = (model(**given).logits.float() for given in (fed, placed))
        except Exception:  # what a model's code raises here, it raises again where it is said
            return True
        return not bool((own - ours).abs().max() > _APART * own.std())

    @property
    def states(self) -> torch.dtype:
        """Return the type of hidden states: float32 or wider, or that of the weights."""
        return self._dtype if self.narrow_because else torch.promote_types(self._dtype, torch.float32)

    @functools.cached_property
    def narrow_because(self) -> str | None:
        """Return why hidden states have 16 bits; None if they are float32 or wider."""
        if self._dtype not in NARROW:
            return None
        if not self._asked_wide:
            return "asked for"
        if _NARROW not in self._verdicts:
            self._verdicts[_NARROW] = why_narrow(self.model) or self._why_not_wide()
        reason: str | None = self._verdicts[_NARROW]
        if reason:  # what the layers keep is freed
            self.__dict__.pop("_wide_parts", None)
            self.__dict__["wide_layers"] = None
        return reason

    def _why_not_wide(self) -> str | None:
        """Return why hidden states cannot be wide, from a trial of some tokens; None if they can.

        What fails with rounded states too is no matter of theirs.
        """
        ids, wide, refused = self._trial_ids(), None, ""
        try:
            wide = self._tried(ids, self._exactly(self._widely))
        except Exception as error:  # a model's code raises anything
            refused = f"the model's code refuses others ({type(error).__name__}: {first_line(error)})"
        try:
            narrow = self._tried(ids, exact_logits(self.model))
        except Exception:
            return None
        if wide is None:
            return refused
        gap = (wide - narrow).square().mean().sqrt()
        return None if gap < _FAR * narrow.std() else "a trial gave other logits"

    def _trial_ids(self) -> Tensor:
        """Return ids [rows, n]: on a GPU so many that they are multiplied as many rows are."""
        config = base_model(self.model).config
        n = max(2, min(_TRIED, max_positions(config)) // 2)
        rows = 1 if self.device.type == "cpu" else 2 * _TRIED // n
        known = min(_TRIED, config.get_text_config(decoder=True).vocab_size)
        return torch.arange(rows * n, device=self.device).remainder(known).reshape(rows, n)

    def _tried(self, ids: Tensor, products: contextlib.AbstractContextManager[Any]) -> Tensor:
        """Return the log-probability of every token of ``ids`` after those before it."""
        with torch.inference_mode(), products:
            logits: Tensor = self.model(input_ids=ids).logits[:, -ids.shape[1] : -1]
        return logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])

    @contextlib.contextmanager
    def _exactly(self, layers: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
        """Let the model compute exact logits, and its layers as ``layers`` has them."""
        with exact_logits(self.model), layers():
            yield

    @functools.cached_property
    def wide_layers(self) -> WideStates | None:
        """Return the layers that can compute with wide hidden states; None where none are asked for, a
        quantised base has none, or a trial told against them."""
        if self._dtype not in NARROW or not self._asked_wide:
            return None
        if why_narrow(self.model) or self._verdicts.get(_NARROW):
            return None
        seen = self.model if self.images is None else language_model(base_model(self.model))
        return WideStates(self.model, seen)

    @contextlib.contextmanager
    def _widely(self) -> Iterator[None]:
        """Let hidden states of a 16-bit model be float32."""
        with contextlib.ExitStack() as stack:
            for part in self._wide_parts:
                stack.enter_context(part())
            yield

    @functools.cached_property
    def _wide_parts(self) -> list[Callable[[], contextlib.AbstractContextManager[None]]]:
        assert self.wide_layers is not None
        if self.device.type != "cuda":
            return [self.wide_layers]
        return [self.wide_layers, QuickNorms(self.model), QuickRotary(self.model)]

    @functools.cached_property
    def _loras(self) -> Callable[[], contextlib.AbstractContextManager[None]]:
        if not any(hasattr(layer, "lora_A") for layer in self.model.modules()):
            return contextlib.nullcontext
        from cme_bench.adapters.shared.lora_inference import QuickLora

        return QuickLora(self.model, output_layer(self.model))

    @property
    def by_pieces(self) -> bool:
        """Return whether float32 may be computed by bfloat16 pieces, where a device gains by it."""
        return self._dtype == torch.float32 and self._asked_pieces is not False

    @property
    def tree_kernel(self) -> Factors | None:
        """Return what a kernel of our own may compute the attention of packs by; None if none may."""
        if self.by_pieces:
            return Factors.PIECES
        return Factors.HALVES if self._dtype in NARROW and self.narrow_because is None else None

    @functools.cached_property
    def pieces(self) -> PieceProducts | None:
        """Return the layers that multiply by pieces; None for a model that is not in float32."""
        return PieceProducts(self.model, self._asked_pieces) if self._dtype == torch.float32 else None

    @contextlib.contextmanager
    def _quickly(self) -> Iterator[None]:
        """Let the layers of a model in float32 or wider compute the same in less time."""
        with contextlib.ExitStack() as stack:
            for part in self._quick_parts:
                stack.enter_context(part())
            yield

    @functools.cached_property
    def _quick_parts(self) -> list[Callable[[], contextlib.AbstractContextManager[None]]]:
        """Return what computes the same in less time: adapters' layers and products, and on a GPU norms and
        positions."""
        parts = [self._loras]
        if self.pieces is not None and self.pieces.plain_because is None:
            parts.append(self.pieces)
        if self.by_pieces and (self._asked_pieces or self.device.type == "cuda"):
            parts.append(QuickNorms(self.model))
        if self.device.type == "cuda":
            parts.append(QuickRotary(self.model))
        return parts

    def _products(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the model computes."""
        if self._dtype not in NARROW:
            return self._exactly(self._quickly)
        return self._exactly(self._widely if self.narrow_because is None else contextlib.nullcontext)

    def _run(self, arguments: dict[str, Any], model: Any = None) -> Any:
        with self._products():
            output = (self.model if model is None else model)(**arguments)
        if self.rounded is None and output.logits.numel():  # a forward may only fill the keys
            self.rounded = is_rounded(output.logits, self._dtype)
        return output

"""Imports of large libraries without what they import for others.

transformers imports scikit-learn, pandas, SciPy and what reads images for a curve that assisted generation
may draw and for losses of detectors: 1,300 modules. torch's compiler and its tensors of several devices,
which it imports for masks and plans that few models use, are 900 more; torchvision, where it is there,
imports the compiler as well. vLLM imports SciPy for sound, Mistral's tokenizers, and what a server is asked.
While a module that does so is executed, a stand-in is in the place of what it imports. The functions of a
stand-in import the real module when they are called. It is gone afterwards, and what it does not know it
takes from the real module.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

from cme_bench.util.collection import uncollected
from cme_bench.util.deferred import defer
from cme_bench.util.import_structure import kept_structure
from cme_bench.util.late import (
    allow_fallbacks_of_vllm,
    ask_for_bitsandbytes_late,
    called_later,
    class_later,
    compute_without_symbols,
    decorated_later,
    draw_nothing_without_memory,
    forget_mistral_tokenizers,
    hand_tokenizers_over,
    have_tensors_late,
    import_itself_once,
    look_for_dtensors_late,
    name_callers_without_reading,
    run_without_the_compiler,
    tell_the_compiler,
)

_LOSS = "transformers.loss.loss_"
BITSANDBYTES = tuple(
    f"peft.tuners.{each}.model" for each in "adalora hira ia3 lora pvera randlora road".split()
)
"""PEFT's modules that have layers of their own for those of bitsandbytes."""
_INTEGRATIONS = "transformers.integrations."
_TENSOR = "torch.distributed.tensor"
_PLANS = "torch._functorch._activation_checkpointing"
_PARALLEL: Mapping[str, Sequence[str]] = {
    "transformers.distributed.tensor_parallel": (
        "_get_parameter_plan",
        "_get_parameter_tp_plan",  # as 5.17 calls it, and
        "_validate_tp_plan_styles",
        "_validate_parallel_plan_styles",
        "apply_expert_parallelism",
        "apply_tensor_parallelism",
        "gather_state_dict_for_save",
        "replace_layer_number_by_wildcard",
        "resolve_parallel_plans",
        "verify_tp_plan",
    )
}
STAND_INS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "transformers.masking_utils": {
        "torch._dynamo._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",)
    },
    "transformers.distributed.sharding_utils": {
        _TENSOR: ("DTensor",),
        f"{_TENSOR}._utils": ("compute_local_shape_and_global_offset",),
        f"{_TENSOR}.placement_types": ("Shard",),
    },
    "transformers.distributed.fsdp": {
        "torch.distributed._composable.fsdp": ("fully_shard",),
        "torch.distributed.fsdp": ("CPUOffloadPolicy", "MixedPrecisionPolicy"),
        **_PARALLEL,
    },
    "transformers.distributed.mixin": _PARALLEL,
    "transformers.modeling_utils": _PARALLEL,
    "peft.import_utils": _PARALLEL,
    "torchvision.ops.roi_align": {"torch._dynamo.utils": ("is_compile_supported",)},
    f"{_PLANS}.graph_info_provider": {"networkx": ("DiGraph",)},
    f"{_PLANS}.knapsack_evaluator": {"networkx": ("DiGraph",)},
    "vllm._aiter_ops": {"pandas": ("read_csv",)},
    "vllm.env_override": {"torch._inductor.lowering": ("FALLBACK_ALLOW_LIST",)},
    "vllm.model_executor.warmup.flashinfer_autotune_cache": {
        "vllm.compilation.caching": ("aot_compile_hash_factors",)
    },
    "vllm.multimodal.audio": {"scipy.signal": ("resample_poly",)},
    "vllm.v1.structured_output.backend_guidance": {
        "transformers.tokenization_mistral_common": ("MistralCommonBackend",)
    },
    "vllm.entrypoints.pooling.base.io_processor": {
        "vllm.entrypoints.serve.engine.typing": ("RendererChatRequest", "RendererRequest"),
        "vllm.tool_parsers": ("ToolParser",),
    },
    "transformers.generation.candidate_generator": {"sklearn.metrics": ("roc_curve",)},
    f"{_LOSS}utils": {
        f"{_LOSS}d_fine": ("DFineForObjectDetectionLoss",),
        f"{_LOSS}deformable_detr": (
            "DeformableDetrForObjectDetectionLoss",
            "DeformableDetrForSegmentationLoss",
        ),
        f"{_LOSS}deimv2": ("Deimv2ForObjectDetectionLoss",),
        f"{_LOSS}for_object_detection": ("ForObjectDetectionLoss", "ForSegmentationLoss"),
        f"{_LOSS}grounding_dino": ("GroundingDinoForObjectDetectionLoss",),
        f"{_LOSS}lw_detr": ("LwDetrForObjectDetectionLoss",),
        f"{_LOSS}rf_detr": ("RfDetrForSegmentationLoss",),
        f"{_LOSS}rt_detr": ("RTDetrForObjectDetectionLoss",),
    },
}
"""Module -> what it imports in advance -> the functions that it takes from there, and only ever calls."""
CLASSES: Mapping[str, Sequence[str]] = {
    "DTensor": (),
    "MistralCommonBackend": (),
    "RendererChatRequest": (),
    "RendererRequest": (),
    "ToolParser": (),
    "Shard": ("local_shard_size_and_offset",),
}
"""Those of the above that are classes -> what is asked of them at once."""
_CHANGED_ONCE_THERE = frozenset({"FALLBACK_ALLOW_LIST"})
"""Those of the above that are None meanwhile, and changed once the module is imported."""
_LOOKS_AROUND = "transformers.utils.import_utils"
_AFTERWARDS: Mapping[str, Callable[[ModuleType], None]] = {
    "torch": compute_without_symbols,
    "torch._library.utils": name_callers_without_reading,
    "torch.nn.init": draw_nothing_without_memory,
    "torch.distributed": have_tensors_late,
    "torch._compile": run_without_the_compiler,
    "torch._dynamo": tell_the_compiler,
    "torch._inductor.lowering": allow_fallbacks_of_vllm,
    "transformers.distributed.utils": look_for_dtensors_late,
    _LOOKS_AROUND: import_itself_once,
    "transformers.tokenization_utils_tokenizers": hand_tokenizers_over,
    "vllm.v1.structured_output.backend_guidance": forget_mistral_tokenizers,
    "PIL": lambda module: defer("PIL.ExifTags"),
    **dict.fromkeys(BITSANDBYTES, ask_for_bitsandbytes_late),
}
"""Module -> what changes it once it is executed."""
_DECORATE = frozenset(
    {
        "transformers.generation.continuous_batching.cache",
        "transformers.modeling_utils",
        f"{_INTEGRATIONS}deepgemm",
        f"{_INTEGRATIONS}eager_paged",
        f"{_INTEGRATIONS}finegrained_fp8",
        f"{_INTEGRATIONS}flex_attention",
        f"{_INTEGRATIONS}sonicmoe",
    }
)
"""What tells torch's compiler to leave a function alone."""
LARGE = frozenset(
    {
        "torch",
        "transformers",
        "transformers.modeling_utils",
        "peft",
        "datasets",
        "lm_eval",
        "vllm",
        "vllm.entrypoints.llm",
    }
)
"""What takes a second to import. A fifth of that is Python's search for garbage, of which there is none."""
_UNDER_THEIR_NAME = frozenset({"torch", "torchvision", "accelerate", "mistral_common"})
"""Packages whose distribution bears their name, of those that transformers asks for as it or vLLM starts."""


def install() -> None:
    """Make the imports that are still to come quicker; a second call changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        for name in _AFTERWARDS.keys() & sys.modules.keys():
            _AFTERWARDS[name](sys.modules[name])


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the few modules above as Python does, and prepares for their execution."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module above, or of a part of what is stood in for; None for any other."""
        if isinstance(path, _NoPath):
            path.ask()
            return importlib.util.find_spec(fullname)
        if not (fullname in STAND_INS or fullname in LARGE or fullname in _AFTERWARDS) and (
            fullname not in {_LOOKS_AROUND, *_DECORATE}
        ):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return None
        execute = spec.loader.exec_module

        def prepared(module: ModuleType) -> None:
            with ExitStack() as stack:
                if fullname in LARGE:
                    stack.enter_context(uncollected(staying=True))
                if fullname == _LOOKS_AROUND:
                    stack.enter_context(_looking_once(module))
                if fullname in _DECORATE:
                    stack.enter_context(decorated_later())
                stack.enter_context(_standing_in(STAND_INS.get(fullname, {})))
                execute(module)
            if fullname in _AFTERWARDS:
                _AFTERWARDS[fullname](module)

        spec.loader.exec_module = prepared  # type: ignore[method-assign]
        return spec


@contextmanager
def _standing_in(wanted: Mapping[str, Sequence[str]]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, members in wanted.items():
            if name not in sys.modules and _may_be_there(name):
                stack.callback(_remove, _stand_in(name, members))
        yield


def _may_be_there(name: str) -> bool:
    """Return whether a module of transformers is found; True for others, as to look would import them."""
    return not name.startswith("transformers.") or importlib.util.find_spec(name) is not None


def _stand_in(name: str, members: Sequence[str]) -> ModuleType:
    """Return a module of functions that import the real one, in its place."""
    module = ModuleType(name)

    def real() -> ModuleType:
        _remove(module)  # it may still be there, for the importer itself or for another thread
        return importlib.import_module(name)

    def ask(attribute: str) -> Any:
        """Return what the stand-in lacks from the real module, which is imported now (PEP 562)."""
        if attribute.startswith("__"):  # whoever walks over all modules asks for those
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        return getattr(real(), attribute)

    for member in members:
        if member in _CHANGED_ONCE_THERE:
            setattr(module, member, None)
            continue
        late = class_later(real, name, member, CLASSES[member]) if member in CLASSES else None
        setattr(module, member, late or called_later(real, member))
    module.__getattr__ = ask  # type: ignore[method-assign]
    module.__path__ = _NoPath(real)
    sys.modules[name] = module
    return module


class _NoPath(list[str]):
    """Where a stand-in's parts lie: whoever asks for one imports the real module first."""

    def __init__(self, ask: Callable[[], ModuleType]) -> None:
        super().__init__()
        self.ask = ask


def _remove(module: ModuleType) -> None:
    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]


@contextmanager
def _looking_once(module: ModuleType) -> Iterator[None]:
    """Let transformers read the metadata of all packages only if it must, and its model files only once.

    It reads that metadata to learn the versions of three packages. It reads its 1,600 model files twice,
    since its own cache of them is too small for one round, to learn which module has which class. That is
    kept on disk for the next process.
    """
    metadata: Any = importlib.metadata
    whole = metadata.packages_distributions
    metadata.packages_distributions = lambda: _Distributions(whole)
    try:
        yield
    finally:
        metadata.packages_distributions = whole
    names: dict[str, Any] = vars(module)
    if (read := names.get("create_import_structure_from_path")) and hasattr(read, "__wrapped__"):
        names["create_import_structure_from_path"] = functools.cache(kept_structure(read.__wrapped__))


class _Distributions(Mapping[str, list[str]]):
    """``packages_distributions()``, made when it is asked for a package that may have another's name."""

    def __init__(self, whole: Callable[[], Mapping[str, list[str]]]) -> None:
        self._whole = functools.cache(whole)

    def __getitem__(self, package: str) -> list[str]:
        if package in _UNDER_THEIR_NAME:
            try:
                return [importlib.metadata.distribution(package).metadata["Name"]]
            except importlib.metadata.PackageNotFoundError:
                pass
        return self._whole()[package]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._whole())

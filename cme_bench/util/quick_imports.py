"""Imports of large libraries without what they import for others.

transformers imports scikit-learn, pandas, SciPy and what reads images for a curve that assisted generation
may draw and for losses of detectors: 1,300 modules. While a module that does so is executed, a stand-in is in
the place of what it imports. The functions of a stand-in import the real module when they are called. It is
gone afterwards, and what it does not know it takes from the real module.
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
from cme_bench.util.import_structure import kept_structure

_LOSS = "transformers.loss.loss_"
STAND_INS: Mapping[str, Mapping[str, Sequence[str]]] = {
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
LARGE = frozenset({"torch", "transformers", "transformers.modeling_utils", "peft", "datasets", "lm_eval"})
"""What takes a second to import. A fifth of that is Python's search for garbage, of which there is none."""
_LOOKS_AROUND = "transformers.utils.import_utils"
_UNDER_THEIR_NAME = frozenset({"torch", "accelerate", "mistral_common"})
"""Packages whose distribution bears their name, of those that transformers asks for at its start."""


def install() -> None:
    """Make the imports that are still to come quicker; a second call changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the few modules above as Python does, and prepares for their execution."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module above, or of a part of what is stood in for; None for any other."""
        if isinstance(path, _NoPath):
            path.ask()
            return importlib.util.find_spec(fullname)
        if fullname not in STAND_INS and fullname not in LARGE and fullname != _LOOKS_AROUND:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return None
        execute = spec.loader.exec_module

        def prepared(module: ModuleType) -> None:
            with ExitStack() as stack:
                if fullname in LARGE:
                    stack.enter_context(uncollected())
                if fullname == _LOOKS_AROUND:
                    stack.enter_context(_looking_once(module))
                stack.enter_context(_standing_in(STAND_INS.get(fullname, {})))
                execute(module)

        spec.loader.exec_module = prepared  # type: ignore[method-assign]
        return spec


@contextmanager
def _standing_in(wanted: Mapping[str, Sequence[str]]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, members in wanted.items():
            if name not in sys.modules:
                stack.callback(_remove, _stand_in(name, members))
        yield


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
        setattr(module, member, _called_later(real, member))
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


def _called_later(real: Callable[[], ModuleType], name: str) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        return getattr(real(), name)(*args, **kwargs)

    called.__name__ = called.__qualname__ = name
    return called


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

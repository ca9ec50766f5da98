"""Packages that are imported when something of them is asked for, not before."""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any

Plain = Mapping[str, Callable[..., Any]]
"""Functions of a module -> what they return of Python's own whole numbers and truth values, or tuples of
those."""
_WAITING: dict[str, ModuleType] = {}


def defer(name: str, classes: Sequence[str] = (), plain: Plain = MappingProxyType({})) -> None:
    """Let ``import NAME`` cost nothing until an attribute or a submodule of the package is asked for.

    ``import peft`` imports bitsandbytes where it is installed, and with it torch's compiler: seconds, in
    programs that quantise nothing. lm-eval imports requests, which most runs never use. A package that is
    imported already, or not installed, stays as it is.

    Until then nothing is an instance of its ``classes``, and its ``plain`` functions answer without it.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    module = ModuleType(name)
    module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
    lock = threading.RLock()
    asked = ("__version__",) if spec.submodule_search_locations is None else ("__path__", "__version__")

    def ask(attribute: str) -> Any:
        """Return an attribute of the package, which is executed now (PEP 562)."""
        if attribute.startswith("__") and attribute not in asked:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        wake()
        return getattr(module, attribute)

    def wake() -> None:
        with lock:
            if _WAITING.pop(name, None) is not None:
                del module.__getattr__
                _execute(module)

    for each in classes:
        setattr(module, each, _ClassLater(module, each, wake))
    for each, answer in plain.items():
        setattr(module, each, _plainly(answer, module, each, wake))
    module.__getattr__ = ask  # type: ignore[method-assign]
    sys.modules[name] = _WAITING[name] = module
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, module)


class _ClassLater:
    """A class of a package that waits: all but the question whether something is its instance wakes that.

    It is no class itself, so that what is derived from it is derived from the real one.
    """

    def __init__(self, module: ModuleType, name: str, wake: Callable[[], None]) -> None:
        self._module, self._name, self._wake = module, name, wake

    def __instancecheck__(self, instance: object) -> bool:
        real = vars(self._module)[self._name]
        return real is not self and isinstance(instance, real)

    def __subclasscheck__(self, subclass: type) -> bool:
        real = vars(self._module)[self._name]
        return real is not self and issubclass(subclass, real)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(f"{self._name!r} has no attribute {attribute!r}")
        return getattr(self._real(), attribute)

    def _real(self) -> Any:
        self._wake()
        return vars(self._module)[self._name]


def _plainly(
    answer: Callable[..., Any], module: ModuleType, name: str, wake: Callable[[], None]
) -> Callable[..., Any]:
    """Return a function of a module that waits; arguments that are not plain wake that."""

    def called(*args: Any, **kwargs: Any) -> Any:
        if not kwargs and all(map(_is_plain, args)):
            return answer(*args)
        wake()
        return vars(module)[name](*args, **kwargs)

    called.__name__ = called.__qualname__ = name
    return called


def _is_plain(value: object) -> bool:
    return type(value) in (int, bool) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def waits(name: str) -> bool:
    """Return whether a package was deferred, and nothing of it was asked for yet."""
    return name in _WAITING and sys.modules.get(name) is _WAITING[name]


def _execute(module: ModuleType) -> None:
    """Execute a package; what it says while it looks for faster kernels is of no use to a user."""
    spec = module.__spec__
    assert spec is not None and spec.loader is not None
    logger = logging.getLogger(module.__name__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    if spec.submodule_search_locations is not None:
        module.__path__ = list(spec.submodule_search_locations)
    module.__package__ = spec.parent
    try:
        spec.loader.exec_module(module)
    finally:
        logger.setLevel(before)

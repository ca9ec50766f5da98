"""Adapter methods of users: a file, a module or an entry point whose code calls ``register``.

Code runs here, with the user's rights, and only code that the user names: by ``--plugin``, by ``[plugins]``
of the project file, or by installing a package with an entry point for the very method that is asked for.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from cme_bench.adapters import registry
from cme_bench.adapters.errors import AdapterError
from cme_bench.util.errors import did_you_mean, first_line

GROUP = "cme_bench.adapters"
"""Entry points of packages: the name of a method, and the module (or function) that registers it."""
_LOADED: dict[str, tuple[str, ...]] = {}
"""The loaded plugins, by a name that another process finds, and the methods that each registered."""


def load_plugins(given: Iterable[str]) -> None:
    """Run each of ``given``, so that the adapter methods in it are registered.

    Each is a FILE.py, the name of a module, or of an entry point in the group ``cme_bench.adapters``. What
    was loaded before is not run again, unless its file has changed.

    Raises AdapterError, one line with file and line, for a file or module that is not there, that cannot be
    run, or that registers no method. Methods that such a plugin did register are taken back.
    """
    for name in given:
        _load(name)


def loaded_plugins() -> tuple[str, ...]:
    """Return what :func:`load_plugins` takes in another process: absolute paths, modules, entry points.

    Methods that were registered without a plugin, as in a notebook, stand there by their module or file.
    """
    named = {method for methods in _LOADED.values() for method in methods}
    others = [m for m in registry.methods() if m.code is not None and m.name not in named]
    modules = [m.config_class.__module__ for m in others]
    found = [
        m.code.file if name == "__main__" and m.code else name
        for m, name in zip(others, modules, strict=True)
    ]
    return tuple(dict.fromkeys([*_LOADED, *found]))


def load_installed(method: str) -> bool:
    """Load the installed package that has an entry point for a method. Return whether there is one.

    Raises AdapterError if it cannot be loaded, or does not register the method.
    """
    if not (found := _entry_points(method)):
        return False
    _load(method)
    if method not in registry.names():
        raise AdapterError(f"{_shown(found[0])} does not register {method!r}")
    return True


def installed_names() -> tuple[str, ...]:
    """Return the names of the entry points of installed packages; none of them is loaded."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def _load(name: str) -> None:
    if "\0" in name:
        raise AdapterError(f"--plugin {name!r}: no such file")
    if name.endswith(".py") or "/" in name:
        file = Path(name).expanduser().resolve()
        if not file.is_file():
            kind = "is a folder; name its FILE.py" if file.is_dir() else "no such file"
            raise AdapterError(f"--plugin {name}: {kind}")
        module = f"cme_plugin_{file.stem}_{_digest(str(file).encode())[:8]}"
        before = sys.modules.get(module)
        if before is not None and getattr(before, "__cme_hash__", None) == _digest(file.read_bytes()):
            return
        _register_by(str(file), file, lambda: _run_file(file, module))
    elif points := _entry_points(name):
        if name not in _LOADED:
            _register_by(name, None, lambda: _run_entry_point(points[0]))
    elif name not in _LOADED:
        _register_by(name, None, lambda: _import(name))


def _register_by(name: str, file: Path | None, run: Callable[[], Any]) -> None:
    """Run what registers methods, and remember it; or take back what it registered."""
    before = set(registry.names())
    try:
        module = run()
        methods = _methods_of(module, before)
        if not methods:
            raise AdapterError("it registers no adapter method: call cme_bench.adapters.register(...) in it")
    except (Exception, SystemExit) as err:
        for added in set(registry.names()) - before:
            registry.unregister(added)
        raise AdapterError(f"--plugin {_where(err, name, file)}") from err
    _LOADED[name] = methods


def _methods_of(module: ModuleType | None, before: set[str]) -> tuple[str, ...]:
    """Return the methods that were added, and those of a module that was imported earlier."""
    own = "" if module is None else module.__name__
    return tuple(
        method.name
        for method in registry.methods()
        if method.name not in before
        or (own and f"{method.config_class.__module__}.".startswith(f"{own}.") and method.code is not None)
    )


def _run_file(file: Path, module: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module, file)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    made.__dict__["__cme_hash__"] = _digest(file.read_bytes())
    before = sys.modules.get(module)
    sys.modules[module] = made  # dataclasses look their module up there
    try:
        spec.loader.exec_module(made)
    except BaseException:
        del sys.modules[module]
        if before is not None:
            sys.modules[module] = before
        raise
    return made


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        if err.name is not None and (name == err.name or name.startswith(f"{err.name}.")):
            hint = did_you_mean(name, installed_names())
            raise AdapterError(
                f"no such module; a file is named with its ending, as {name}.py{hint}"
            ) from None
        raise
    except (TypeError, ValueError) as err:  # "..x", "": no name of a module
        if not all(part.isidentifier() for part in name.split(".")):
            raise AdapterError("neither a FILE.py nor the name of a module") from err
        raise


def _run_entry_point(point: EntryPoint) -> ModuleType | None:
    found = point.load()
    if isinstance(found, ModuleType):
        return found
    if callable(found) and not isinstance(found, type):
        found()
    return sys.modules.get(point.module)


def _entry_points(name: str) -> list[EntryPoint]:
    return list(entry_points(group=GROUP, name=name))


def _shown(point: EntryPoint) -> str:
    package = point.dist.name if point.dist is not None else point.value
    return f"entry point {point.name!r} of the package {package}"


def _where(err: BaseException, name: str, file: Path | None) -> str:
    """Return one line: the plugin, the place in it, and what is wrong there."""
    if isinstance(err, SyntaxError):
        place, said = f"{err.filename}:{err.lineno}", str(err.msg)
    else:
        frames = traceback.extract_tb(err.__traceback__)
        here = [frame for frame in frames if _is_users(frame.filename, file)]
        place = f"{here[-1].filename}:{here[-1].lineno}" if here else name
        said = (
            first_line(err) if isinstance(err, AdapterError) else f"{type(err).__name__}: {first_line(err)}"
        )
    return f"{place}: {said}" if place.startswith(name) else f"{name}: {place}: {said}"


def _is_users(filename: str, file: Path | None) -> bool:
    """Return whether a line of a traceback is the plugin's: in its file, or else in neither this package nor
    Python's machinery of imports."""
    if file is not None:
        return Path(filename) == file
    path = Path(filename)
    machinery = filename.startswith("<") or "importlib" in path.parts
    return not machinery and not path.resolve().is_relative_to(Path(__file__).resolve().parent.parent)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

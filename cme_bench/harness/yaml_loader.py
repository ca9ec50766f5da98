"""Reading task files: lm-eval's YAML with a safe loader, includes, and the line of every key.

``!function module.name`` becomes a :class:`FunctionRef` and is not imported here; whether it may be is
decided when the task is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cme_bench.util.errors import UsageError, first_line
from cme_bench.util.unchanged import note_read

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True, repr=False)
class FunctionRef:
    """A ``!function`` tag: the qualified name and the file that holds it."""

    name: str
    file: Path
    line: int

    def __repr__(self) -> str:
        return f"!function {self.name}"

    @property
    def module_file(self) -> Path:
        """The Python file beside the task file that the name stands for, if there is one there."""
        return self.file.parent / f"{self.name.rpartition('.')[0].replace('.', '/')}.py"

    @property
    def is_local(self) -> bool:
        """Whether it names Python code beside the task file, not an installed module."""
        return self.module_file.is_file()


@dataclass(frozen=True, slots=True)
class LoadedYaml:
    """``values`` with includes merged (local keys win). ``where`` names file and line of each key and,
    dotted, of each key and element (by number) below it."""

    values: dict[str, Any]
    where: dict[str, str]


class _Loader(_Base):  # type: ignore[misc]  # the C loader has no stubs
    source: Path = Path()


def _function(loader: _Loader, node: yaml.ScalarNode) -> FunctionRef:
    return FunctionRef(str(node.value), loader.source, node.start_mark.line + 1)


_Loader.add_constructor("!function", _function)


def load_yaml(path: Path, *, root: Path, strict: bool = True) -> LoadedYaml:
    """Load one task file; ``include`` files must lie under ``root``.

    Raises UsageError with file and line for broken YAML, include cycles, includes outside ``root``, and for a
    key that stands twice if ``strict``; else the last one counts, as in lm-eval.
    """
    return _load(path.resolve(), root.resolve(), (), strict)


def _load(path: Path, root: Path, seen: tuple[Path, ...], strict: bool) -> LoadedYaml:
    if path in seen:
        raise UsageError(f"{path}: include cycle")
    if not path.is_relative_to(root):
        raise UsageError(f"{seen[-1] if seen else path}: include {path} lies outside {root}")
    values, where = _parse(path, strict)
    includes = values.pop("include", [])
    merged: dict[str, Any] = {}
    merged_where: dict[str, str] = {}
    for name in includes if isinstance(includes, list) else [includes]:
        place = where.get("include", str(path))
        if not (path.parent / str(name)).is_file():
            raise UsageError(f"{place}: include {name}: no such file")
        included = _load((path.parent / str(name)).resolve(), root, (*seen, path), strict)
        merged.update(included.values)
        merged_where = _places_of_others(merged_where, included.values) | included.where
    return LoadedYaml(merged | values, _places_of_others(merged_where, values) | where)


def _places_of_others(where: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, str]:
    """Return the places of keys, and of what is below them, that ``values`` does not replace."""
    return {key: place for key, place in where.items() if key.partition(".")[0] not in values}


def _parse(path: Path, strict: bool) -> tuple[dict[str, Any], dict[str, str]]:
    note_read(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    loader = _Loader(text)
    loader.source = path
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"{path}:1: a task file is a mapping of keys to values")
        places = _Places(path, strict=strict)
        places.note("", node)
        return loader.construct_document(node), places.where
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}:{line}: {error.problem or 'broken YAML'}") from error
    except (yaml.YAMLError, ValueError) as error:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise UsageError(f"{path}:{line}: {first_line(error)}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: nested too deeply") from error
    finally:
        loader.dispose()


class _Places:
    """The place of every key and element of a file: ``where``. ``strict``: a key that stands twice is an
    error."""

    def __init__(self, path: Path, *, strict: bool) -> None:
        self.path = path
        self.strict = strict
        self.where: dict[str, str] = {}
        self._seen: set[int] = set()  # nodes; an alias repeats one, and may repeat it without end

    def note(self, prefix: str, node: yaml.Node) -> None:
        """Note what is below ``node``, whose own name with a dot is ``prefix``."""
        if id(node) in self._seen:
            return
        self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self._note_one(f"{prefix}{key.value}", key)
                self.note(f"{prefix}{key.value}.", value)
        elif isinstance(node, yaml.SequenceNode):
            for i, part in enumerate(node.value):
                self.where[f"{prefix}{i}"] = f"{self.path}:{part.start_mark.line + 1}"
                self.note(f"{prefix}{i}.", part)

    def _note_one(self, name: str, key: yaml.Node) -> None:
        place = f"{self.path}:{key.start_mark.line + 1}"
        if self.strict and name in self.where and key.value != "<<":
            first = self.where[name].rpartition(":")[2]
            raise UsageError(f"{place}: {name!r} stands twice, first in line {first}")
        self.where[name] = place

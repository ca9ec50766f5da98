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

from cme_bench.errors import UsageError, first_line

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class FunctionRef:
    """A ``!function`` tag: the qualified name and the file that holds it."""

    name: str
    file: Path
    line: int

    def __str__(self) -> str:
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
    """``values`` with includes merged (local keys win); ``where`` names file and line of each key and,
    dotted, of each key and each element (by number) below it."""

    values: dict[str, Any]
    where: dict[str, str]


class _Loader(_Base):  # type: ignore[misc]  # the C loader has no stubs
    source: Path = Path()


def _function(loader: _Loader, node: yaml.ScalarNode) -> FunctionRef:
    return FunctionRef(str(node.value), loader.source, node.start_mark.line + 1)


_Loader.add_constructor("!function", _function)


def load_yaml(path: Path, *, root: Path) -> LoadedYaml:
    """Load one task file; ``include`` files must lie under ``root``.

    Raises UsageError with file and line for broken YAML, include cycles and includes outside ``root``.
    """
    return _load(path.resolve(), root.resolve(), ())


def _load(path: Path, root: Path, seen: tuple[Path, ...]) -> LoadedYaml:
    if path in seen:
        raise UsageError(f"{path}: include cycle")
    if not path.is_relative_to(root):
        raise UsageError(f"{seen[-1] if seen else path}: include {path} lies outside {root}")
    values, where = _parse(path)
    includes = values.pop("include", [])
    merged: dict[str, Any] = {}
    merged_where: dict[str, str] = {}
    for name in includes if isinstance(includes, list) else [includes]:
        included = _load((path.parent / str(name)).resolve(), root, (*seen, path))
        merged.update(included.values)
        merged_where = _places_of_others(merged_where, included.values) | included.where
    return LoadedYaml(merged | values, _places_of_others(merged_where, values) | where)


def _places_of_others(where: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, str]:
    """The places of keys, and of what is below them, that ``values`` does not replace."""
    return {key: place for key, place in where.items() if key.partition(".")[0] not in values}


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"{path}: cannot be read ({err})") from err
    loader = _Loader(text)
    loader.source = path
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"{path}:1: a task file is a mapping of keys to values")
        where: dict[str, str] = {}
        _note_mapping(where, "", node, path, set())
        return loader.construct_document(node), where
    except yaml.MarkedYAMLError as err:
        line = err.problem_mark.line + 1 if err.problem_mark else 1
        raise UsageError(f"{path}:{line}: {err.problem or 'broken YAML'}") from err
    except (yaml.YAMLError, ValueError) as err:
        line = text.count("\n", 0, getattr(err, "position", 0)) + 1
        raise UsageError(f"{path}:{line}: {first_line(err)}") from err
    except RecursionError as err:
        raise UsageError(f"{path}: nested too deeply") from err
    finally:
        loader.dispose()


def _note_mapping(
    where: dict[str, str], prefix: str, node: yaml.MappingNode, path: Path, seen: set[int]
) -> None:
    """Note the place of every key below ``node``; a key that stands twice is an error.

    ``seen``: nodes that were noted; an alias repeats one, and may repeat it without end.
    """
    for key, value in node.value:
        name, place = f"{prefix}{key.value}", f"{path}:{key.start_mark.line + 1}"
        if name in where and key.value != "<<":
            first = where[name].rpartition(":")[2]
            raise UsageError(f"{place}: {name!r} stands twice, first in line {first}")
        where[name] = place
        _note_below(where, name, value, path, seen)


def _note_below(where: dict[str, str], name: str, value: yaml.Node, path: Path, seen: set[int]) -> None:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, yaml.MappingNode):
        _note_mapping(where, f"{name}.", value, path, seen)
    elif isinstance(value, yaml.SequenceNode):
        for i, part in enumerate(value.value):
            where[f"{name}.{i}"] = f"{path}:{part.start_mark.line + 1}"
            _note_below(where, f"{name}.{i}", part, path, seen)

"""A deferred package costs nothing until it is used, and is then the package itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = {
    "__init__.py": "import heavy.part\nfrom heavy.part import thing\n__version__ = '1'\nprint('executed')\n",
    "part.py": "import heavy\nthing = object()\n",
    "other.py": "import heavy as whole\nsame = whole.thing\n",
}


def said(tmp_path: Path, code: str) -> list[str]:
    """Return what a process prints that defers the package and then runs ``code``."""
    (tmp_path / "heavy").mkdir(exist_ok=True)
    for name, text in PACKAGE.items():
        (tmp_path / "heavy" / name).write_text(text)
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom cme_bench.util.deferred import defer\n"
    program = f"{start}defer('heavy')\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("import heavy, importlib.util; print(importlib.util.find_spec('heavy').name)", ["heavy"]),
        ("import heavy; print(hasattr(heavy, '__warningregistry__'))", ["False"]),
        ("import heavy; print(heavy.thing is heavy.part.thing)", ["executed", "True"]),
        (
            "from heavy import thing; import heavy.other; print(thing is heavy.other.same)",
            ["executed", "True"],
        ),
        ("import heavy.other, heavy; print(heavy.other.same is heavy.thing)", ["executed", "True"]),
        ("import heavy; print(heavy.__version__)", ["executed", "1"]),
        ("import heavy; print(hasattr(heavy, 'absent'))", ["executed", "False"]),
        ("defer('absent_package'); defer('sys'); print(sys.version_info[0])", ["3"]),
    ],
)
def test_it_is_executed_when_it_is_used(code: str, lines: list[str], tmp_path: Path) -> None:
    assert said(tmp_path, code) == lines


MODULE = """
print("executed")
class Symbol: pass
def is_symbol(value): return isinstance(value, Symbol)
def size(value): return value
name = __package__
"""
FOREIGN = """
import light, sys
from cme_bench.util.deferred import defer
plain = {"is_symbol": lambda value: False, "size": lambda value: value}
defer("light.module", classes=["Symbol"], plain=plain)
import light.module
from light.module import Symbol, is_symbol, size
"""


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("print(isinstance(3, Symbol), issubclass(int, (Symbol, str)), is_symbol(3))", ["False False False"]),
        ("print(size((2, (True, 3))), light.module is sys.modules['light.module'])", ["(2, (True, 3)) True"]),
        ("print(size('three'))", ["executed", "three"]),
        ("print(size(value=3))", ["executed", "3"]),
        ("print(is_symbol(Symbol()), isinstance(Symbol(), Symbol))", ["executed", "True True"]),
        (
            "class Own(Symbol): pass\nprint(issubclass(Own, Symbol), light.module.Symbol in Own.__mro__)",
            ["executed", "True True"],
        ),
        ("print(light.module.name, light.module.size.__module__)", ["executed", "light light.module"]),
    ],
)
def test_a_module_is_asked_of_plain_numbers_without_it(code: str, lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "light").mkdir()
    (tmp_path / "light" / "__init__.py").touch()
    (tmp_path / "light" / "module.py").write_text(MODULE)
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{FOREIGN}"
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == lines

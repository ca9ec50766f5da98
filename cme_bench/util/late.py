"""Parts of large libraries' imports that wait until they are needed."""

from __future__ import annotations

import functools
import importlib
import operator
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from cme_bench.util.deferred import defer, waits


def called_later(real: Callable[[], Any], name: str) -> Callable[..., Any]:
    """Return a function that calls ``name`` of the module, or class, that ``real`` gives."""

    def called(*args: Any, **kwargs: Any) -> Any:
        return getattr(real(), name)(*args, **kwargs)

    called.__name__ = called.__qualname__ = name
    return called


def class_later(real: Callable[[], ModuleType], module: str, name: str, functions: Sequence[str]) -> type:
    """Return what can stand for a class of a module that is not imported yet.

    Nothing is an instance of it before the module is there. Its attributes, and calls of it, are the real
    class's; the module is imported for them, but not for asking whether it has these ``functions``.
    """

    class Late(type):
        def __instancecheck__(cls, instance: object) -> bool:
            found = getattr(sys.modules.get(module), name, None)
            return found is not None and isinstance(instance, found)

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return getattr(real(), name)(*args, **kwargs)

        def __getattr__(cls, attribute: str) -> Any:
            if attribute.startswith("__"):
                raise AttributeError(f"type object {name!r} has no attribute {attribute!r}")
            return getattr(getattr(real(), name), attribute)

    own = {f: staticmethod(called_later(lambda: getattr(real(), name), f)) for f in functions}
    return Late(name, (), own)


_COMPILER, _TENSOR = "torch._dynamo", "torch.distributed.tensor"
_HIDDEN = "__dynamo_disable"
_told: list[tuple[str, Any]] = []
_unhidden: list[Any] = []


@contextmanager
def decorated_later() -> Iterator[None]:
    """Let decorators for torch's compiler not import it, with 900 modules.

    It is imported when a function that it shall leave alone is first called. What it shall know of others
    is told to it once it is imported.
    """
    import torch

    compiler, before = torch.compiler, (torch.compiler.disable, torch.compiler.allow_in_graph)
    outer = vars(torch).get("_dynamo")  # of a module that imports this one
    stand_in: Any = ModuleType(_COMPILER)
    stand_in.__getattr__ = lambda name: getattr(importlib.import_module(_COMPILER), name)
    stand_in.allow_in_graph = functools.partial(_tell, "allow_in_graph")
    stand_in.assume_constant_result = functools.partial(_tell, "assume_constant_result")
    if _COMPILER not in sys.modules:
        compiler.disable = functools.partial(_disabled_later, before[0])
        compiler.allow_in_graph = stand_in.allow_in_graph
        torch._dynamo = stand_in
    try:
        yield
    finally:
        compiler.disable, compiler.allow_in_graph = before
        if vars(torch).get("_dynamo") is stand_in:
            del torch._dynamo
            if outer is not None:
                torch._dynamo = outer


def _disabled_later(disable: Any, fn: Any = None, recursive: bool = True, **kwargs: Any) -> Any:
    if fn is None:
        return functools.partial(_disabled_later, disable, recursive=recursive, **kwargs)
    disabled = functools.cache(lambda: disable(fn, recursive, **kwargs))

    @functools.wraps(fn)
    def wrapped(*args: Any, **inner: Any) -> Any:
        return disabled()(*args, **inner)

    return wrapped


def _tell(what: str, fn: Any) -> Any:
    _told.append((what, fn))
    return fn


def tell_the_compiler(module: Any) -> None:
    """Tell torch's compiler, now that it is imported, what decorators say of functions, and hide some."""
    while _unhidden:
        delattr(_unhidden.pop(), _HIDDEN)
    while _told:
        what, fn = _told.pop()
        getattr(module, what)(fn)


def ask_for_bitsandbytes_late(module: Any) -> None:
    """Let a module of PEFT that chooses layers think that bitsandbytes is absent while nothing has used it.

    A layer of bitsandbytes cannot be in a model before. To find none, PEFT would import the package, and with
    it torch's compiler: seconds.
    """
    for name in ("is_bnb_available", "is_bnb_4bit_available"):
        asked = vars(module).get(name)
        if asked is not None:
            setattr(module, name, functools.partial(_if_used, "bitsandbytes", asked))


def _if_used(package: str, asked: Callable[[], bool]) -> bool:
    return not waits(package) and asked()


def look_for_dtensors_late(module: Any) -> None:
    """Let ``is_dtensor`` of transformers import no DTensors to say that a tensor is none of them."""
    asked = vars(module).get("is_dtensor")
    if asked is not None:
        module.is_dtensor = lambda obj: _TENSOR in sys.modules and asked(obj)


def have_tensors_late(module: Any) -> None:
    """Let ``torch.distributed`` have a ``tensor``, as PEFT takes for granted, without an import of that."""
    stand_in: Any = ModuleType(_TENSOR)

    def real() -> ModuleType:
        return importlib.import_module(_TENSOR)

    stand_in.DTensor = class_later(real, _TENSOR, "DTensor", ())
    stand_in.__getattr__ = lambda name: getattr(real(), name)
    if "tensor" not in vars(module):
        module.tensor = stand_in


def run_without_the_compiler(module: Any) -> None:
    """Let what torch hides from its compiler not import it, to be hidden, while there is none.

    So are its operations in Python, of which every model on the device "meta" is made.
    """
    hide: Any = vars(module)["_disable_dynamo"]

    def hidden(fn: Any = None, recursive: bool = True) -> Any:
        if fn is None:
            return functools.partial(hidden, recursive=recursive)
        found = hide(fn, recursive)
        if _COMPILER not in sys.modules:
            with suppress(AttributeError):
                setattr(fn, _HIDDEN, fn)  # torch keeps there what it calls, once it knows
                _unhidden.append(fn)
        return found

    module._disable_dynamo = hidden


def _itself(value: Any) -> Any:
    return value


_OF_NUMBERS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("expect_true", "guard_or_false", "guard_or_true"), _itself),
    **dict.fromkeys(("guarding_hint_or_throw", "size_hint"), _itself),  # the latter in torch 2.11, and
    **dict.fromkeys(("has_guarding_hint", "has_hint"), lambda value: True),
    "is_nested_int": lambda value: False,
    "statically_known_true": _itself,
    "sym_and": lambda *values: all(values),
    "sym_eq": operator.eq,
    "sym_or": lambda *values: any(values),
}
"""Functions of torch's symbols -> what they return where there is none."""


def compute_without_symbols(torch: Any) -> None:
    """Let torch import its symbols, and sympy for them, only where there are some.

    It computes in Python with what lies on the device "meta", as every model does while it is made, and asks
    of every size whether it is a symbol; and of a condition that holds.
    """
    defer("sympy", ["Basic"])
    defer("torch.fx.experimental.symbolic_shapes", plain=_OF_NUMBERS)
    check: Any = torch._check_with

    @functools.wraps(check)
    def check_with(error_type: Any, cond: Any, message: Any) -> None:
        if cond is not True:
            check(error_type, cond, message)

    torch._check_with = check_with


def draw_nothing_without_memory(module: Any) -> None:
    """Let ``torch.nn.init`` draw nothing from a normal distribution for a weight on the device "meta".

    There is no memory to write to, but torch works out in Python what it would draw.
    """
    draw: Any = module._no_grad_normal_

    @functools.wraps(draw)
    def drawn(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor if tensor.is_meta else draw(tensor, *args, **kwargs)

    module._no_grad_normal_ = drawn


def forget_mistral_tokenizers(module: ModuleType) -> None:
    """Take the stand-in for Mistral's tokenizers, which ``module`` has, from what transformers keeps."""
    vars(sys.modules["transformers"]).pop("MistralCommonBackend", None)


class _Handed(threading.local):
    tokenizer: Any = None


def hand_tokenizers_over(module: Any) -> None:
    """Let transformers take the tokenizer that it has just read from a file for itself, and not a copy.

    A copy prints and parses the vocabulary, which takes as long as to read the file. One that a caller gives
    is copied as ever.
    """
    kind, own = module.TokenizersBackend, vars(module).get("copy")
    convert = getattr(vars(kind).get("convert_to_native_format"), "__func__", None)
    if own is None or convert is None:
        return
    handed = _Handed()

    @functools.wraps(convert)
    def converted(cls: Any, *args: Any, **kwargs: Any) -> Any:
        found = convert(cls, *args, **kwargs)
        made = found.get("tokenizer_object")
        handed.tokenizer = None if made is kwargs.get("tokenizer_object") else made
        return found

    def taken(value: Any, *args: Any) -> Any:
        own_one, handed.tokenizer = handed.tokenizer, None
        return value if value is own_one and value is not None else own.deepcopy(value, *args)

    copying: Any = ModuleType("copy")
    vars(copying).update(vars(own), deepcopy=taken)
    kind.convert_to_native_format, module.copy = classmethod(converted), copying


def import_itself_once(module: Any) -> None:
    """Let transformers take itself, where it executes its package anew to ask classes of that by name."""
    again: Any = vars(module).get("direct_transformers_import")
    if again is None:
        return

    @functools.wraps(again)
    def imported(path: Any, *args: Any, **kwargs: Any) -> Any:
        there: Any = sys.modules.get("transformers")
        same = not (args or kwargs) and list(getattr(there, "__path__", ())) == [str(path)]
        return there if same else again(path, *args, **kwargs)

    module.direct_transformers_import = imported


def allow_fallbacks_of_vllm(module: ModuleType) -> None:
    """Change torch's lowerings as vLLM does when it is imported, if that was before they were."""
    changed = getattr(sys.modules.get("vllm.env_override"), "_VllmFallbackAllowList", None)
    listed = vars(module).get("FALLBACK_ALLOW_LIST")
    if changed is not None and listed is not None and not isinstance(listed, changed):
        vars(module)["FALLBACK_ALLOW_LIST"] = changed(listed)


def name_callers_without_reading(module: Any) -> None:
    """Let ``torch.library`` note where an operation was registered without reading that file, and without
    resolving the paths of all modules for it."""
    if "get_source" in vars(module):

        def get_source(stacklevel: int) -> str:
            frame = sys._getframe(stacklevel)
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"

        module.get_source = get_source

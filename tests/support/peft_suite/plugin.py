"""A plugin for pytest that runs PEFT's generic tests with our methods' configs, and with those alone.

``python -m pytest -p tests.support.peft_suite.plugin --peft-methods teamlora FOLDER``
"""

from __future__ import annotations

import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.adapter_cases import CONFIGS, ON_LINEARS
from tests.support.peft_suite import cases
from tests.support.peft_suite.exceptions import EXCEPTIONS, LEFT_OUT, UNSKIPPED

MODULES = (
    "test_custom_models.py",
    "test_decoder_models.py",
    "test_encoder_decoder_models.py",
    "test_feature_extraction_models.py",
    "test_seq_classifier.py",
)
"""Files of PEFT's tests that run over lists of configs."""
_ENCODER_TARGETS = {"target_modules": ["query", "value", "intermediate.dense"]}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--peft-every", type=int, default=1, help="run one in so many, other ones for each method"
    )
    parser.addoption("--peft-models", type=Path, required=True, help="where tiny models are made")


def pytest_configure() -> None:
    """Stand in for diffusers, which PEFT's common tests import for a test of images that is not run here."""
    if find_spec("diffusers") is None:
        stand_in = types.ModuleType("diffusers")
        stand_in.__dict__["StableDiffusionPipeline"] = type("StableDiffusionPipeline", (), {})
        sys.modules["diffusers"] = stand_in


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Put our cases in the place of PEFT's, before its tests are made from the lists."""
    if isinstance(collector, pytest.Module) and collector.path.name in MODULES:
        _fill(collector.obj, cases.tiny_models(collector.config.getoption("--peft-models")))


def _fill(module: Any, models: dict[str, Path]) -> None:
    lists: dict[str, list[Any]] = {
        "TEST_CASES": cases.custom_cases(),
        "ALL_PEFT_CONFIG_CLASSES": [CONFIGS[method] for method in ON_LINEARS],
        "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": cases.active_cases(),
        "MIXED_ADAPTER_TEST_CASES": cases.mixed_cases(),
        "PEFT_DECODER_MODELS_TO_TEST": [str(models["llama"]), str(models["gpt2"])],
        "PEFT_ENCODER_DECODER_MODELS_TO_TEST": [str(models["t5"])],
        "PEFT_FEATURE_EXTRACTION_MODELS_TO_TEST": [str(models["bert"])],
        "PEFT_SEQ_CLS_MODELS_TO_TEST": [str(models["bert-classifier"])],
        "ALL_CONFIGS": {
            "test_decoder_models": cases.model_cases("CAUSAL_LM"),
            "test_encoder_decoder_models": cases.model_cases("SEQ_2_SEQ_LM", target_modules=["q", "v", "wi"]),
            "test_feature_extraction_models": cases.model_cases("FEATURE_EXTRACTION", **_ENCODER_TARGETS),
            "test_seq_classifier": cases.model_cases("SEQ_CLS", **_ENCODER_TARGETS),
        }.get(module.__name__.rpartition(".")[2], []),
    }
    for name, rows in lists.items():
        if hasattr(module, name):
            getattr(module, name)[:] = rows
    module.set_init_weights_false = lambda config, fields: {**fields, "init": "random"}
    module.pytest = _without_skips(module.pytest)
    common = module.__dict__["PeftCommonTester"].__module__
    shared = __import__(common, fromlist=["pytest"])
    shared.pytest = _without_skips(shared.pytest)


def _without_skips(own: Any) -> Any:
    """Return pytest as PEFT's tests see it, that does not skip what PEFT assumes of methods unknown to it."""

    def skip(reason: str = "", **options: Any) -> None:
        if not any(words in reason for words in UNSKIPPED):
            pytest.skip(reason, **options)

    return types.SimpleNamespace(**{**vars(own), "skip": skip})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of our configs; expect of some the failure that a list gives a reason for."""
    methods = {item: method for item in items if (method := method_of(item)) is not None}
    out = {
        place: [i for i, m in methods.items() if m == place[0] and place[1] in i.name] for place in LEFT_OUT
    }
    unused = [f"{method}, {part}" for (method, part), found in out.items() if not found]
    dropped = {item for found in out.values() for item in found}
    ours = [item for item in methods if item not in dropped]
    for exception in EXCEPTIONS:
        met = [item for item in ours if exception.meets(item.name, methods[item])]
        for item in met:
            item.add_marker(exception.mark())
        missed = exception.methods - {methods[item] for item in met}
        unused += [f"{method}, {exception.test}" for method in sorted(missed)]
    config.stash[UNUSED] = unused
    every, order = config.getoption("--peft-every"), list(CONFIGS)
    kept = [item for n, item in enumerate(ours) if (n + order.index(methods[item])) % every == 0]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


UNUSED = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name what the lists say of tests that do not exist."""
    for entry in config.stash.get(UNUSED, []):
        terminalreporter.write_line(f"STALE {entry}: there is no such test")


def method_of(item: pytest.Item) -> str | None:
    """Return the method of the config that a test runs with; None if it runs with none of ours."""
    params = getattr(item, "callspec", None)
    for value in params.params.values() if params else ():
        for name, config in CONFIGS.items():
            if value is config or type(value) is config:
                return name
    return None

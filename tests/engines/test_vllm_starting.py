"""A model's class is looked at in the process where it will run, as vLLM looks at it in one of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

PROGRAM = """
import gc, os, sys
import cme_bench
from vllm.model_executor.models import registry
from cme_bench.engines.vllm.starting import starting_here

theirs = registry._run_in_subprocess
model = registry.ModelRegistry.models["LlamaForCausalLM"]
there, here = sys.argv[1:]

os.environ["VLLM_CACHE_ROOT"] = there
model.inspect_model_cls()
assert model.module_name not in sys.modules

os.environ["VLLM_CACHE_ROOT"] = here
registry.subprocess = None
with starting_here():
    assert gc.get_freeze_count() > 100_000
    model.inspect_model_cls()
assert model.module_name in sys.modules
assert registry._run_in_subprocess is theirs
"""


def found(folder: Path) -> object:
    """Return what vLLM keeps of the class after it was looked at."""
    (file,) = (folder / "modelinfos").iterdir()
    return json.loads(file.read_text())


def test_nothing_is_started_and_the_same_is_found(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    variables = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    subprocess.run([sys.executable, "-c", PROGRAM, str(there), str(here)], check=True, env=variables)
    assert found(here) == found(there)

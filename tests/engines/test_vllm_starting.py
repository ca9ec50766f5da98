"""A start of vLLM in this process is without what it does for servers; afterwards vLLM is as it was."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.support.tiny_llama import random_llama, save_checkpoint

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
with starting_here(compiles=False, quantised=False):
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


STARTS = """
import os, sys
from pathlib import Path
import cme_bench, torch
from vllm import LLM, SamplingParams
from vllm.config.kernel import KernelConfig
from vllm.renderers import hf
from vllm.utils import jit_monitor
from vllm.v1.worker import cpu_worker, gpu_worker, worker_base
from cme_bench.engines.vllm.host import output_to
from cme_bench.engines.vllm.starting import starting_here

model, old, compiles = sys.argv[1], sys.argv[2] == "old", sys.argv[3] == "compiles"
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
if old:
    KernelConfig.__dataclass_fields__.pop("enable_jit_warmup")
owners = [(gpu_worker, "kernel_warmup"), (gpu_worker, "warmup_kernels"), (jit_monitor, "activate")]
owners += [(hf, "maybe_make_thread_pool"), (worker_base.WorkerWrapperBase, "init_worker")]
owners += [(torch, "compile")]
theirs = [getattr(owner, name) for owner, name in owners]
during = []

def warm(worker):
    during.extend(getattr(owner, name) for owner, name in owners)
    during.append(os.environ.get("HUMMING_DISABLE_PARALLEL_BUILD") is None)
    return warms(worker)

warms, cpu_worker.CPUWorker.compile_or_warm_up_model = cpu_worker.CPUWorker.compile_or_warm_up_model, warm
with output_to(Path(sys.argv[4])), starting_here(compiles=compiles, quantised=compiles):
    llm = LLM(model, dtype="float32", max_model_len=64, enforce_eager=True)
assert [getattr(owner, name) for owner, name in owners] == theirs
assert "HUMMING_DISABLE_PARALLEL_BUILD" not in os.environ
asked = llm.generate("a b", SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True), use_tqdm=False)
print([ours is other for ours, other in zip(during, [*theirs, True])], asked[0].outputs[0].token_ids)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(folder, random_llama(1, hidden=64, heads=1, vocab=320), toy_tokenizer)
    return folder


@pytest.mark.parametrize(
    ("version", "compiles", "left"),
    [("old", "eager", False), ("old", "compiles", True), ("new", "eager", True)],
)
def test_what_a_short_job_does_not_use_is_not_built(
    version: str, compiles: str, left: bool, tiny: Path, tmp_path: Path
) -> None:
    """The tokenizer is copied for no threads in any case; a version that decides by itself is left alone."""
    variables = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    arguments = [str(tiny), version, compiles, str(tmp_path / "log")]
    command = [sys.executable, "-c", STARTS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    same, _, ids = done.stdout.strip().rpartition("] [")
    assert (
        same == f"[{left}, {left}, {left}, False, False, {compiles == 'compiles'}, {compiles == 'compiles'}"
    )
    assert len(ids.split(",")) == 3

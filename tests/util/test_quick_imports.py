"""Large libraries are imported without what they import for others; what was stood in for still works."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cme_bench.util.quick_imports import _UNDER_THEIR_NAME, STAND_INS, _Distributions

UNUSED = (
    "bitsandbytes.nn",
    "datasets.features",
    "evaluate",
    "lm_eval",
    "matplotlib",
    "pandas",
    "scipy",
    "sklearn",
    "tensorboard",
)
"""What no training needs before its first step, and transformers or PEFT would import."""

PROGRAM = f"""
import gc, importlib.metadata, json, sys
whole = importlib.metadata.packages_distributions
import cme_bench.training.train
found = [name for name in {UNUSED} if name in sys.modules]
from transformers.utils import import_utils
read = import_utils.create_import_structure_from_path.cache_info()
from cme_bench.util.quick_imports import STAND_INS
wrong = []
for importer, wanted in STAND_INS.items():
    if importer not in sys.modules and not importer.startswith(("transformers.", "peft.")):
        continue  # not installed, or not imported
    for name, members in wanted.items():
        for member in set(members) & set(vars(sys.modules[importer])):
            try:
                vars(sys.modules[importer])[member]()
            except TypeError as error:  # the real function misses its arguments
                if "argument" not in str(error) or not sys.modules[name].__file__:
                    wrong.append(f"{{name}}.{{member}}: {{error}}")
            except Exception as error:
                wrong.append(f"{{name}}.{{member}}: {{error!r}}")
from transformers.generation.candidate_generator import roc_curve
curve = [list(map(float, part)) for part in roc_curve([0, 1, 1], [0.1, 0.4, 0.8])]
print(json.dumps({{
    "found": found, "twice": read.misses > read.currsize, "wrong": wrong, "gc": gc.isenabled(),
    "restored": importlib.metadata.packages_distributions is whole, "curve": curve,
}}))
"""


@pytest.mark.slow
def test_a_training_is_imported_without_what_it_does_not_use() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    curve = said.pop("curve")
    assert said == {"found": [], "twice": False, "wrong": [], "gc": True, "restored": True}
    assert curve[0][-1] == curve[1][-1] == 1.0


def test_a_run_is_imported_without_what_fetches_pages() -> None:
    code = "import sys, cme_bench.runs.runner; print('requests.api' in sys.modules, 'sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


PACKAGES = {
    "user.py": "from heavy.part import function, other\n"
    "from heavy.part.inner import thing\nimport heavy.part\n",
    "lean.py": "from heavy.part import function\nimport inspect, sys\n"
    "seen = [hasattr(m, '__file__') for m in list(sys.modules.values())]\n",
    "at_once.py": "from heavy.part import function\nprint(function(1))\n",
    "heavy/__init__.py": "print('heavy')\n",
    "heavy/part/__init__.py": "def function(n): return n + 1\nother = 7\nprint('part')\n",
    "heavy/part/inner.py": "thing = 8\n",
}


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("import lean; print(lean.function(1))", ["heavy", "part", "2"]),
        ("import lean; print('heavy' in sys.modules, 'heavy.part' in sys.modules)", ["False False"]),
        ("import lean, heavy.part; print(heavy.part.other)", ["heavy", "part", "7"]),
        ("import at_once, heavy.part; print(heavy.part.other)", ["heavy", "part", "2", "7"]),
        ("import user; print(user.function(1), user.other, user.thing)", ["heavy", "part", "2 7 8"]),
        ("import heavy.part, lean; print(lean.function is heavy.part.function)", ["heavy", "part", "True"]),
    ],
)
def test_a_stand_in_gives_way_to_the_real_module(code: str, lines: list[str], tmp_path: Path) -> None:
    for name, text in PACKAGES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    start = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from cme_bench.util import quick_imports as q\n"
        "wanted = {'heavy.part': ('function',)}\n"
        "q.STAND_INS = {'user': wanted, 'lean': wanted, 'at_once': wanted}\nq.install(); q.install()\n"
    )
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == lines


def test_the_packages_are_looked_up_as_before() -> None:
    whole = importlib.metadata.packages_distributions()
    lazily = _Distributions(importlib.metadata.packages_distributions)
    assert {name: lazily.get(name) for name in ("torch", "accelerate", "flash_attn", "yaml", "PIL")} == {
        name: whole.get(name) for name in ("torch", "accelerate", "flash_attn", "yaml", "PIL")
    }
    assert dict(lazily) == whole


def test_packages_that_bear_their_name_are_found_without_a_look_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in _UNDER_THEIR_NAME:
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
        (tmp_path / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = _Distributions(lambda: pytest.fail("all packages were looked at"))
    assert {name: found[name] for name in _UNDER_THEIR_NAME} == {name: [name] for name in _UNDER_THEIR_NAME}
    assert "torchvision" in _UNDER_THEIR_NAME, "transformers asks for it, where it is there"


VLLM = """
import sys
import cme_bench
from cme_bench.engines.vllm.settings import require_vllm
require_vllm()
asleep = [name for name in ("scipy.signal", "mistral_common", "networkx") if name in sys.modules]
import numpy
from scipy import signal
from vllm.multimodal.audio import resample_audio_scipy
wave = numpy.sin(numpy.arange(64.0))
same = numpy.array_equal(resample_audio_scipy(wave, orig_sr=2, target_sr=1), signal.resample_poly(wave, 1, 2))
print(asleep, same, signal.__name__)
"""


LOWERINGS = """
import sys
from types import ModuleType
import cme_bench
from cme_bench.util import quick_imports as q
sys.path.insert(0, sys.argv[1])
q.STAND_INS = {"override": {"lowering": ("FALLBACK_ALLOW_LIST",)}}
q._AFTERWARDS = {"lowering": q._AFTERWARDS["torch._inductor.lowering"]}
sys.modules["vllm.env_override"] = __import__("override")
print("lowering" in sys.modules)
from lowering import FALLBACK_ALLOW_LIST, allowed
print(allowed(), FALLBACK_ALLOW_LIST.inner)
"""
OVERRIDE = """
class _VllmFallbackAllowList:
    def __init__(self, inner):
        self.inner = inner
    def __contains__(self, item):
        return item.startswith("vllm::") or item in self.inner
import lowering
if lowering.FALLBACK_ALLOW_LIST is not None:
    lowering.FALLBACK_ALLOW_LIST = _VllmFallbackAllowList(lowering.FALLBACK_ALLOW_LIST)
"""
LOWERED = """
FALLBACK_ALLOW_LIST = {"aten::one"}
def allowed():
    return [name in FALLBACK_ALLOW_LIST for name in ("aten::one", "vllm::two", "other::three")]
"""


@pytest.mark.parametrize("early", [False, True])
def test_lowerings_that_are_imported_after_vllm_are_changed_as_it_does(early: bool, tmp_path: Path) -> None:
    (tmp_path / "override.py").write_text(OVERRIDE)
    (tmp_path / "lowering.py").write_text(LOWERED)
    program = LOWERINGS.replace("q.STAND_INS = ", "import lowering\nq.STAND_INS = ") if early else LOWERINGS
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{early}\n[True, True, False] {{'aten::one'}}\n"


@pytest.mark.parametrize("vllm", ["", "import vllm\n"], ids=["alone", "after vllm"])
@pytest.mark.slow
def test_vllms_lowerings_are_those_of_a_plain_import(vllm: str) -> None:
    """In a plain interpreter vLLM imports them at once; here they come when somebody asks for them."""
    if vllm and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    code = "from torch._inductor import graph, lowering\nlisted = lowering.FALLBACK_ALLOW_LIST\n"
    code += "print('vllm::a' in listed, 'b::a' in listed, graph.FALLBACK_ALLOW_LIST is listed, len(listed))"
    said = [
        subprocess.run(
            [sys.executable, "-c", start + vllm + code], capture_output=True, text=True, check=True
        )
        for start in ("import cme_bench\n", "")
    ]
    assert said[0].stdout == said[1].stdout
    assert said[0].stdout.startswith(f"{bool(vllm)} False True")


OLDER = """
import sys
import cme_bench
from cme_bench.util import quick_imports as q
guidance = "vllm.v1.structured_output.backend_guidance"
q.STAND_INS = {"guidance": q.STAND_INS[guidance]}
q._AFTERWARDS = {"guidance": q._AFTERWARDS[guidance]}
sys.path.insert(0, sys.argv[1])
import guidance, transformers
print(isinstance(guidance, guidance.MistralCommonBackend), "mistral_common" in sys.modules)
print(transformers.MistralCommonBackend is guidance.MistralCommonBackend)
print(guidance.MistralCommonBackend.from_pretrained == transformers.MistralCommonBackend.from_pretrained)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("mistral_common") is None, reason="mistral_common is not installed"
)
def test_what_stands_for_mistrals_tokenizers_is_not_what_transformers_gives(tmp_path: Path) -> None:
    (tmp_path / "guidance.py").write_text("from transformers import MistralCommonBackend\n")
    command = [sys.executable, "-c", OLDER, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\nFalse\nTrue\n"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_is_imported_without_what_hears() -> None:
    done = subprocess.run([sys.executable, "-c", VLLM], capture_output=True, text=True, check=True)
    assert done.stdout == "[] True scipy.signal\n"


def test_every_stand_in_is_for_a_part_of_a_library() -> None:
    assert all(
        importer.startswith(("torch.", "transformers.", "peft.", "torchvision.", "vllm."))
        for importer in STAND_INS
    )

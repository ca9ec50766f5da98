"""What libraries do at import is done when it is needed, and is then what they do."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import json, sys
import cme_bench
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], attn_implementation="sdpa")
adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "gate_proj"], task_type="CAUSAL_LM"))
ids = torch.tensor([[0, 3, 4], [5, 6, 7]])
mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
loss = adapted(input_ids=ids, attention_mask=mask, labels=ids).loss
loss.backward()
LARGE = ("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "bitsandbytes.nn", "sympy.core")
found = {"large": [name for name in LARGE if name in sys.modules]}

from transformers.distributed.sharding_utils import DTensor, Shard
from transformers.distributed.utils import is_dtensor
theirs = torch.distributed.tensor.DTensor
found["before"] = [is_dtensor(ids), isinstance(ids, DTensor), isinstance(ids, theirs)]
found["untouched"] = "torch.distributed.tensor" not in sys.modules
import torch.distributed.tensor as real
found["same"] = [torch.distributed.tensor is real, isinstance(Shard(0), real.Shard)]
sizes = [kind.local_shard_size_and_offset(10, 2, 1) for kind in (Shard, real.Shard)]
found["same"].append(sizes[0] == sizes[1])
from torch.testing._internal.distributed.fake_pg import FakeStore
torch.distributed.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
spread = real.distribute_tensor(torch.ones(2), real.init_device_mesh("cpu", (1,)), [real.Replicate()])
found["after"] = [is_dtensor(spread), isinstance(spread, DTensor), is_dtensor(ids)]

from transformers.integrations.deepgemm import is_sm100
from transformers.integrations.eager_paged import eager_paged_attention_forward
from cme_bench.util import late
found["told before"] = bool(late._told)
doubled = torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2)).tolist()
found["told"] = [not late._told, not late._unhidden, is_sm100._dynamo_marked_constant, doubled]
try:
    eager_paged_attention_forward()
except TypeError as error:
    found["left alone"] = "eager_paged_attention_forward() missing" in str(error)
print(json.dumps(found))
"""


TORCH_FIRST = """
import sys, torch, cme_bench
from peft import LoraConfig, get_peft_model
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(target_modules=["0"]))
print(tuple(model(torch.ones(1, 4)).shape), "bitsandbytes.nn" in sys.modules)
"""


@pytest.mark.slow
def test_torch_may_be_imported_before() -> None:
    done = subprocess.run([sys.executable, "-c", TORCH_FIRST], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["(1, 4) False"], done.stderr


@pytest.mark.slow
def test_a_model_with_an_adapter_needs_no_compiler_and_has_it_when_asked(tiny_checkpoint: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tiny_checkpoint)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "large": [],
        "before": [False, False, False],
        "untouched": True,
        "same": [True, True, True],
        "after": [True, True, False],
        "told before": True,
        "told": [True, True, True, [2.0, 2.0]],
        "left alone": True,
    }


SYMBOLS = """
import sys
import cme_bench
import torch
from torch.nn import Embedding
from transformers import AutoModelForCausalLM, LlamaConfig
config = LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
with torch.device("meta"):
    made = AutoModelForCausalLM.from_config(config)
print(made.model.rotary_emb.inv_freq.shape, made.lm_head.weight.device, "sympy.core" in sys.modules)
weights = Embedding(50, 16).weight
torch.manual_seed(0)
drawn = torch.nn.init.normal_(torch.empty(3))
torch.manual_seed(0)
print(bool(weights.std() > 0.5), torch.equal(drawn, torch.randn(3)))
total = torch.compile(lambda x: x.sum() + x.shape[0], backend="aot_eager", dynamic=True)
print(total(torch.ones(5)).item(), total(torch.ones(7)).item(), "sympy.core" in sys.modules)
"""


@pytest.mark.slow
def test_a_model_without_memory_needs_no_symbols_and_a_compiled_function_has_them() -> None:
    done = subprocess.run([sys.executable, "-c", SYMBOLS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "torch.Size([4]) meta False",
        "True True",
        "10.0 14.0 True",
    ]


ASKED = """
import sys
import cme_bench
import torch
from torch.fx.experimental.symbolic_shapes import has_hint, size_hint
print(has_hint(3), size_hint(3), "sympy.core" in sys.modules)
"""


def test_what_older_releases_of_torch_ask_of_a_size_needs_no_symbols() -> None:
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True 3 False"]


@pytest.mark.slow
def test_a_tokenizer_read_from_a_file_is_not_copied_and_a_given_one_is(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, TokenizersBackend

    import cme_bench  # noqa: F401  # whose finder changes transformers

    copied: list[object] = []
    deepcopy = copy.deepcopy

    def counted(value: object, *args: object) -> object:
        copied.extend([value] if isinstance(value, Tokenizer) else [])
        return deepcopy(value, *args)

    monkeypatch.setattr(copy, "deepcopy", counted)
    first, second = (AutoTokenizer.from_pretrained(str(tiny_checkpoint)) for _ in range(2))
    assert copied == []
    assert first._tokenizer is not second._tokenizer
    given = TokenizersBackend(tokenizer_object=first._tokenizer)
    assert copied == [first._tokenizer]
    assert given._tokenizer is not first._tokenizer
    for tokenizer in (second, given):
        assert tokenizer._tokenizer.to_str() == first._tokenizer.to_str()


AGAIN = """
import cme_bench, transformers
from transformers.processing_utils import transformers_module
from transformers.utils import direct_transformers_import
import sys
print(transformers_module is transformers, sys.modules["transformers"] is transformers)
try:
    direct_transformers_import("/nowhere")
except OSError as error:
    print(error.filename)
"""


@pytest.mark.slow
def test_transformers_takes_itself_for_the_classes_of_processors() -> None:
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True True", "/nowhere/__init__.py"]


SOURCE = """
import sys
import cme_bench
import torch
from torch._library.utils import get_source
import PIL.Image
import linecache
linecache.clearcache()
print(get_source(1).rpartition("/")[2], "PIL.ExifTags" in sys.modules, "ORIENTATION" in vars(PIL.ExifTags))
print(__file__ in linecache.cache)
image = PIL.Image.new("RGB", (2, 3))
exif = image.getexif()
exif[PIL.ExifTags.Base.Orientation] = 6
from PIL import ImageOps
print(ImageOps.exif_transpose(image).size)
"""


@pytest.mark.slow
def test_where_an_operation_is_registered_is_noted_without_reading_the_file(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SOURCE)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["program.py:9 True False", "False", "(3, 2)"]

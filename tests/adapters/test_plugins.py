"""Methods of users: loaded by name, refused in one line, computed as their own code computes them."""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import AdapterConfig, AdapterError, registry
from cme_bench.adapters.files import read_config
from cme_bench.adapters.plugins import load_plugins, loaded_plugins
from cme_bench.adapters.support import verdict
from cme_bench.engines import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.hf import HFEngine
from cme_bench.engines.vllm.adapter import read_gated
from cme_bench.models.adapter import resolve_adapter
from cme_bench.util.errors import UsageError
from cme_bench.util.project import read_project
from tests.support.plugins import forget_plugins
from tests.support.tiny_llama import random_llama
from tests.support.vllm_fields import applied, logits

EXAMPLE = Path(__file__).parents[2] / "examples" / "input_gated_lora.py"
METHOD = """
from dataclasses import dataclass
import torch
from torch import nn
from cme_bench.adapters import AdapterConfig, AdapterLinear, AdapterModel, Gate, GatedForm, register

@dataclass
class OwnConfig(AdapterConfig):
    pass

class OwnLinear(AdapterLinear[OwnConfig]):
    method = "own"
    adapter_layer_names = ("own_down", "own_up")

    @staticmethod
    def shapes(config, d_in, d_out):
        return {"own_down": (config.r, d_in), "own_up": (d_out, config.r)}

    def delta(self, x, name):
        z = nn.functional.linear(SEEN, self.held("down", name))
        return self.settings[name].scale * nn.functional.linear(z, self.held("up", name))

class OwnModel(AdapterModel):
    prefix = "own_"
    tuner_layer_cls = OwnLinear

"""
REGISTER = 'register("own", OwnConfig, OwnModel{})\n'
GATED = """, per_token=True, vllm=GatedForm(
    layer=OwnLinear, stored=("own_down", "own_up"), gate=lambda config: Gate(rank=config.r),
    tensors=lambda config, layer, read: {"down": read("own_down") * config.scale, "up": read("own_up")},
)"""
DECORATED = "@dataclass\nclass OwnConfig(AdapterConfig):\n    pass"
UNDECORATED = "class OwnConfig(AdapterConfig):\n    steepness: float = 1.0"
RUNNING_MEAN = "x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]"
ROWS_MEAN = "x + x.mean(0, keepdim=True)"
HEAD = (9, 8, 11, 12, 13, 9, 8, 14)
SCORED = [
    LoglikelihoodRequest((((*HEAD, 5), (21, 22)), ((*HEAD, 5), (23,)))),
    LoglikelihoodRequest((((*HEAD, 6), (40,)), ((31, 32, 7), (33, 34)))),
]
ASKED = [GenerateRequest((*HEAD, 5, 20), 5), GenerateRequest((*HEAD, 6), 3), GenerateRequest((31, 7), 4)]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    forget_plugins()
    for name in [name for name in sys.modules if name.startswith(("cme_plugin_", "own_"))]:
        del sys.modules[name]


def plugin(folder: Path, seen: str = "x", more: str = "") -> str:
    file = folder / "own.py"
    file.write_text(METHOD.replace("SEEN", seen) + REGISTER.format(more))
    return str(file)


def adapter(folder: Path, method: str = "own") -> Path:
    """An adapter of a registered method, with random weights, on ``random_llama(0)``."""
    config = registry.method(method).config_class(r=4, alpha=16.0, init="random", task_type="CAUSAL_LM")
    model = get_peft_model(random_llama(0), config)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if f".{method}_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def plain_rows(model: torch.nn.Module, request: LoglikelihoodRequest) -> list[float]:
    """Log-likelihoods of the rows, each by a forward of its own."""
    found = []
    for context, continuation in request.rows:
        row = torch.tensor([[*context, *continuation]])
        scores = model(input_ids=row).logits[0].log_softmax(-1)
        at = range(len(context) - 1, row.shape[1] - 1)
        found.append(sum(float(scores[i, row[0, i + 1]]) for i in at))
    return found


def plain_greedy(model: torch.nn.Module, request: GenerateRequest) -> list[int]:
    ids = list(request.prompt)
    for _ in range(request.max_new_tokens):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(request.prompt) :]


@torch.no_grad()
def assert_as_plain(folder: Path, tokenizer: PreTrainedTokenizerFast) -> HFEngine:
    """The engine answers as plain forwards of whole rows do, and not as the base does."""
    model = PeftModel.from_pretrained(random_llama(0), str(folder)).eval()
    engine = HFEngine(model, tokenizer)
    engine._decoder._end_ids = frozenset()
    scored, texts = dict(engine.loglikelihood(SCORED)), dict(engine.generate(ASKED))
    for i, request in enumerate(SCORED):
        wanted = plain_rows(model, request)
        assert list(scored[i].logprobs) == pytest.approx(wanted, abs=1e-4)
        with model.disable_adapter():
            assert plain_rows(model, request) != pytest.approx(wanted, abs=1e-2)
    for i, asked in enumerate(ASKED):
        assert texts[i].text == tokenizer.decode(plain_greedy(model, asked), skip_special_tokens=True)
    return engine


def test_a_method_that_is_declared_per_token_shares_prefixes(
    tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    load_plugins([plugin(tmp_path, more=", per_token=True")])
    engine = assert_as_plain(adapter(tmp_path / "a"), toy_tokenizer)
    assert engine.rowwise_because is None


@pytest.mark.parametrize("declared", ["", ", per_token=True"])
@pytest.mark.parametrize("seen", [RUNNING_MEAN, ROWS_MEAN], ids=["tokens before", "other rows"])
def test_a_method_that_sees_more_than_a_token_is_computed_row_by_row(
    tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast, seen: str, declared: str
) -> None:
    """Whether it says so, or says the contrary: then a trial of its layers finds out."""
    load_plugins([plugin(tmp_path, seen, declared)])
    engine = assert_as_plain(adapter(tmp_path / "a"), toy_tokenizer)
    reason = engine.alone_because or ""
    assert ("in a trial" if declared else "not registered as per_token") in reason


def test_the_example_computes_its_formula(tmp_path: Path) -> None:
    load_plugins([str(EXAMPLE)])
    folder = adapter(tmp_path / "a", "gatedlora")
    model = PeftModel.from_pretrained(random_llama(0), str(folder)).eval()
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    x = torch.randn(2, 5, 32)
    a, b, g = (getattr(layer, f"gatedlora_{part}")["default"].detach() for part in ("down", "up", "gate"))
    for row in range(2):
        for place in range(5):
            token = x[row, place]
            gate = 1 / (1 + torch.exp(-(token * g).sum()))
            wanted = layer.base_layer(token) + 16.0 / 4 * gate * (b @ (a @ token))
            torch.testing.assert_close(layer(x)[row, place], wanted, atol=1e-4, rtol=1e-4)


def test_vllm_refuses_in_a_sentence_what_gives_no_form(tmp_path: Path) -> None:
    load_plugins([str(EXAMPLE)])
    folder = adapter(tmp_path / "a", "gatedlora")
    with pytest.raises(AdapterError, match=r"GATEDLORA.*its gate is a sigmoid.*use --engine hf"):
        read_gated(folder, random_llama(0).config)


@torch.no_grad()
def test_a_method_that_gives_its_form_is_computed_by_the_plugin(tmp_path: Path) -> None:
    load_plugins([plugin(tmp_path, more=GATED)])
    folder = adapter(tmp_path / "a")
    base, ids = random_llama(0), torch.tensor([list(HEAD)])
    wanted = PeftModel.from_pretrained(random_llama(0), str(folder)).eval()(ids).logits
    with applied(base, read_gated(folder, base.config)) as model:
        torch.testing.assert_close(logits(model, ids), wanted, atol=1e-4, rtol=1e-4)


def registering(name: str, config: str = "OwnConfig", model: str = "OwnModel") -> str:
    return METHOD + f'register("{name}", {config}, {model})'


BROKEN = {
    "nothing registered": ("x = 1\n", r"own.py: it registers no adapter method: call .*register\(\.\.\.\)"),
    "syntax": ("x = 1\ndef f(:\n", r"own.py:2: invalid syntax"),
    "name": ("x = 1\n\ny = z\n", r"own.py:3: NameError: name 'z' is not defined"),
    "import": ("import nothing_of_that_name\n", r"own.py:1: ModuleNotFoundError: No module named"),
    "exit": ("import sys\nsys.exit(3)\n", r"own.py:2: SystemExit: 3"),
    "taken": (registering("teamlora"), r"own.py:\d+: .*taken by .*TeamLoraConfig"),
    "taken by PEFT": (registering("vera"), r"own.py:\d+: .*taken by PEFT's own method"),
    "capitals": (registering("Own"), r"own.py:\d+: .*lower-case letters"),
    "no config": (registering("own", config="dict"), r"own.py:\d+: .*dict is no subclass of PEFT's PeftConf"),
    "no model": (registering("own", model="OwnLinear"), r"own.py:\d+: .*OwnLinear is no subclass of"),
    "no reason": (METHOD + REGISTER.format(", vllm=None"), r"own.py:\d+: .*vllm must be a GatedForm, or"),
    "no dataclass": (
        METHOD.replace("@dataclass\nclass OwnConfig(AdapterConfig):\n    pass", UNDECORATED)
        + REGISTER.format(""),
        r"own.py:\d+: .*'steepness' is no field of OwnConfig; write @dataclass",
    ),
    "init variable": (
        METHOD.replace("    pass", "    steepness: InitVar[float] = 1.0").replace(
            "import dataclass", "import InitVar, dataclass"
        )
        + REGISTER.format(""),
        r"own.py:\d+: .*'steepness' is no field of OwnConfig: an InitVar is not saved; make it a field",
    ),
    "prefix": (registering("other"), r"own.py:\d+: .*Inconsistent prefixes"),
    "error afterwards": (METHOD + REGISTER.format("") + "1 / 0\n", r"own.py:\d+: ZeroDivisionError"),
}


CONSTANTS = """\
import dataclasses
import typing
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar
"""
BODY = """\
    order: ClassVar[tuple[int, ...]] = (1, 2)
    plain: typing.ClassVar = 3
    _: KW_ONLY
    steepness: float = 1.0
"""


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_what_is_no_field_by_intent_is_allowed(tmp_path: Path, future: str) -> None:
    text = METHOD.replace("from dataclasses import dataclass\n", CONSTANTS).replace("    pass\n", BODY)
    (tmp_path / "own.py").write_text(future + text + REGISTER.format(""))
    load_plugins([str(tmp_path / "own.py")])
    assert {"steepness"} == registry.method("own").fields - {
        f.name for f in dataclasses.fields(AdapterConfig)
    }


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_one_line_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    text, said = BROKEN[case]
    (tmp_path / "own.py").write_text(text)
    before = registry.names()
    with pytest.raises(AdapterError, match=said) as raised:
        load_plugins([str(tmp_path / "own.py")])
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2
    assert registry.names() == before
    assert loaded_plugins() == ()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.py", "nowhere.py: no such file"),
        ("./", "is a folder"),
        ("own_module_nowhere", "no such module"),
        ("own plugin", "neither a FILE.py nor|no such module"),
    ],
)
def test_a_plugin_that_is_not_there(name: str, said: str) -> None:
    with pytest.raises(AdapterError, match=said):
        load_plugins([name])


def test_a_config_without_its_type_is_refused(tmp_path: Path) -> None:
    text = METHOD.replace(
        "class OwnConfig(AdapterConfig):\n    pass", "class OwnConfig(PeftConfig):\n    r: int = 4"
    )
    (tmp_path / "own.py").write_text("from peft import PeftConfig\n" + text + REGISTER.format(""))
    with pytest.raises(AdapterError, match=r"has peft_type None; set self.peft_type = peft_type\('own'\)"):
        load_plugins([str(tmp_path / "own.py")])


def test_loading_again_changes_nothing_until_the_file_does(tmp_path: Path) -> None:
    name = plugin(tmp_path)
    load_plugins([name, name])
    first = registry.method("own")
    load_plugins([name])
    assert registry.method("own") is first
    plugin(tmp_path, more=", per_token=True")
    load_plugins([name])
    assert registry.method("own").per_token


def test_the_code_of_a_plugin_is_part_of_what_answers(tmp_path: Path) -> None:
    config = random_llama(0).config
    load_plugins([plugin(tmp_path)])
    folder = adapter(tmp_path / "a")
    before = resolve_adapter(str(folder), config)
    assert before.record.code and before.record.code.file == str(tmp_path / "own.py")
    load_plugins([plugin(tmp_path, "2 * x")])
    assert resolve_adapter(str(folder), config).hash != before.hash
    assert not resolve_adapter(str(adapter(tmp_path / "b", "teamlora")), config).record.code


def test_a_note_says_what_an_undeclared_method_costs(tmp_path: Path) -> None:
    load_plugins([plugin(tmp_path)])
    notes = resolve_adapter(str(adapter(tmp_path / "a")), random_llama(0).config).notes
    assert any("own is not registered as per_token" in note for note in notes)


def test_an_adapter_of_an_unknown_method_names_the_option(tmp_path: Path) -> None:
    load_plugins([plugin(tmp_path)])
    folder = adapter(tmp_path / "a")
    registry.unregister("own")
    with pytest.raises(AdapterError, match=r"unknown peft_type 'OWN'.*--plugin"):
        read_config(folder)


def install(site: Path, name: str, module: str, text: str) -> None:
    """An installed package with one entry point."""
    (site / f"{module}.py").write_text(text)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cme_bench.adapters]\n{name} = {module}\n")


def test_an_installed_package_is_loaded_for_its_own_method_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_plugins([plugin(tmp_path)])
    folder = adapter(tmp_path / "a")
    registry.unregister("own")
    install(tmp_path, "own", "own_package", METHOD.replace("SEEN", "x") + REGISTER.format(""))
    install(tmp_path, "bad", "own_bad", "1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert verdict(read_config(folder)).way == "alone"
    assert "own_bad" not in sys.modules
    with pytest.raises(AdapterError, match=r"--plugin bad: .*own_bad.py:1: ZeroDivisionError"):
        load_plugins(["bad"])


def test_a_module_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_module.py").write_text(METHOD.replace("SEEN", "x") + REGISTER.format(""))
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins(["own_module"])
    assert loaded_plugins() == ("own_module",)
    assert registry.method("own").code is not None


@pytest.mark.parametrize(
    "text", ['[plugins]\na = "own.py"\n', '[plugins]\nx = ["own.py"]\n', 'plugins = ["own.py"]\n']
)
def test_the_project_file_names_plugins(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cme-bench.toml"
    file.write_text(text)
    assert read_project(file).plugins == (str(tmp_path / "own.py"),)


def test_a_plugin_is_no_default(tmp_path: Path) -> None:
    file = tmp_path / "cme-bench.toml"
    file.write_text('[defaults]\nplugin = "own.py"\n')
    with pytest.raises(
        UsageError, match=r"cme-bench.toml:2: 'plugin' is no default: name plugins under \[plugins\]"
    ):
        read_project(file)


def test_no_module_but_a_methods_own_names_several_methods() -> None:
    """The registry is the one list. "teamlora" is a prompt format and vLLM's name of the plugin, too."""
    package = Path(registry.__file__).parent.parent
    for file in package.rglob("*.py"):
        if file.parent.name != "methods":
            constants = {
                node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)
            }
            named = {value.lower() for value in constants if isinstance(value, str)} & set(registry.names())
            assert len(named) < 2, f"{file} names {', '.join(sorted(named))}"


def test_the_fixture_leaves_pefts_own_list(base: LlamaForCausalLM) -> None:
    assert all(method.code is None for method in registry.methods())

"""Exported folders: what is in them, who takes them; vLLM serves them with the adapter or not at all."""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import TeamLoraConfig
from cme_bench.cli.adapters import export_vllm
from cme_bench.engines import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.server.client import Server
from cme_bench.engines.server.engine import ServerEngine
from cme_bench.engines.server.likelihood import prove_likelihood
from cme_bench.engines.server.probe import probe
from cme_bench.engines.vllm.adapter import read_gated
from cme_bench.engines.vllm.settings import WORKER
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.export_vllm import export_checkpoint, serve_command
from cme_bench.models.load import check_base, evaluation_dtype, load_config, load_named
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.options import ModelOptions, RunOptions
from cme_bench.runs.runner import run
from cme_bench.util.errors import CmeError, UsageError
from cme_bench.vllm_plugin.file import (
    ADAPTER_FILE,
    AdapterFileError,
    file_digest,
    read_spec,
    write_adapter,
)
from cme_bench.vllm_plugin.spec import SUBFOLDER
from tests.support.tiny_llama import random_llama, save_checkpoint
from tests.support.vllm_bench import Bench
from tests.support.vllm_fields import LORA, logits, peft_logits, save_adapter

LENGTH = 96
IDS = [3 + 7 * i % 250 for i in range(24)]

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    model = random_llama(0, hidden=128, positions=LENGTH, vocab=320, spread=0.08, tokenizer=toy_tokenizer)
    return save_checkpoint(tmp_path_factory.mktemp("export") / "base", model, toy_tokenizer)


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    model = LlamaForCausalLM.from_pretrained(base)
    return save_adapter(model, base.parent / "lora", LoraConfig(**LORA))


@pytest.fixture
def served(base: Path, adapter: Path, tmp_path: Path) -> Path:
    export_vllm(adapter, str(base), tmp_path / "served", offline=True)
    return tmp_path / "served"


def block(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


def test_neither_folder_changes_with_the_other(base: Path, adapter: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(base, tmp_path / "mine")
    out = tmp_path / "served"
    export_vllm(adapter, str(mine), out, offline=True)
    before = (mine / "model.safetensors").read_bytes()
    assert (out / "model.safetensors").read_bytes() == before
    for changed, other in ((out, mine), (mine, out)):
        with (changed / "model.safetensors").open("r+b") as stream:
            stream.seek(len(before) - 4)
            stream.write(b"\x01\x02\x03\x04" if changed == out else b"\x05\x06\x07\x08")
        assert (changed / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    assert (mine / "model.safetensors").read_bytes()[-4:] == b"\x05\x06\x07\x08"
    assert (out / "model.safetensors").read_bytes()[-4:] == b"\x01\x02\x03\x04"


def test_links_are_made_where_asked_for(base: Path, adapter: Path, tmp_path: Path) -> None:
    export_vllm(adapter, str(base), tmp_path / "served", link=True, offline=True)
    assert (tmp_path / "served" / "model.safetensors").readlink() == base / "model.safetensors"
    assert not (tmp_path / "served" / "config.json").is_symlink()


def test_another_adapter_of_one_shape_is_another_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(base)
    other = save_adapter(model, tmp_path / "other", LoraConfig(**LORA), seed=7)
    for source in (adapter, other):
        export_vllm(source, str(base), tmp_path / f"served-{source.name}", offline=True)
    first, second = (tmp_path / f"served-{source.name}" for source in (adapter, other))
    assert {k for k, v in block(first).items() if v != block(second)[k]} == {"adapter_sha256"}
    assert resolve_model(str(first)).hash != resolve_model(str(second)).hash


def unblocked(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    del content["quantization_config"]
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter" / ADAPTER_FILE).unlink(), "cannot be read"),
        (lambda f: (f / "adapter" / ADAPTER_FILE).write_bytes(b"x"), "not the file that config.json names"),
        (unblocked, "config.json does not speak of this adapter"),
    ],
)
def test_a_damaged_export_is_bad_input(
    damage: Any, message: str, base: Path, adapter: Path, tmp_path: Path
) -> None:
    export_vllm(adapter, str(base), tmp_path / "served", offline=True)
    checkpoint = resolve_model(str(tmp_path / "served"))
    check_base(checkpoint, load_config(checkpoint), "vllm")
    damage(tmp_path / "served")
    with pytest.raises(UsageError, match=message):
        check_base(checkpoint, load_config(checkpoint), "vllm")


def test_one_adapter_exported_again_is_the_same_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    gated = read_gated(adapter, load_config(resolve_model(str(base))))
    for number in range(8):
        export_checkpoint(base, gated, tmp_path / str(number))
    assert len({resolve_model(str(tmp_path / str(number))).hash for number in range(8)}) == 1


def test_an_exported_folder_is_not_quantised(base: Path, adapter: Path, tmp_path: Path) -> None:
    export_vllm(adapter, str(base), tmp_path / "served", offline=True)
    config = load_config(resolve_model(str(tmp_path / "served")))
    for device in ("cpu", "cuda"):
        found, _ = evaluation_dtype("auto", config, torch.device(device), lambda: 10**6, engine="vllm")
        assert found is torch.float32


def test_a_second_copy_in_another_format_stays_behind(base: Path, adapter: Path, tmp_path: Path) -> None:
    """vLLM prefers Mistral's own format where it lies there, and that cannot name an adapter."""
    mine = shutil.copytree(base, tmp_path / "mine")
    for name in ("params.json", "consolidated.00-of-01.safetensors"):
        (mine / name).write_bytes(b"{}")
    export_checkpoint(mine, read_gated(adapter, load_config(resolve_model(str(base)))), tmp_path / "out")
    assert not list((tmp_path / "out").glob("consolidated*")) + list((tmp_path / "out").glob("params*"))


@pytest.mark.parametrize("link", [False, True])
def test_a_tokenizer_beside_the_adapter_is_exported(
    base: Path, adapter: Path, tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast, link: bool
) -> None:
    """As evaluating uses it; the base's own stays as it is, linked or not."""
    mine, trained = shutil.copytree(base, tmp_path / "mine"), shutil.copytree(adapter, tmp_path / "trained")
    before = {file.name: file.read_bytes() for file in mine.iterdir()}
    other = copy.deepcopy(toy_tokenizer)
    other.chat_template = "{{ messages[0]['content'] }}!"
    other.save_pretrained(trained)
    export_vllm(trained, str(mine), tmp_path / "out", link=link, offline=True)
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert found.chat_template == other.chat_template
    assert {file.name: file.read_bytes() for file in mine.iterdir()} == before


@pytest.mark.parametrize("link", [False, True])
def test_answers_end_where_the_adapters_training_ended_them(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], link: bool
) -> None:
    """A server then stops as ``run`` does; the base's file stays as it is."""
    trained = shutil.copytree(adapter, tmp_path / "trained")
    (trained / "cme_training.json").write_text('{"tokenization": {"end_of_answer": [7]}}')
    mine = shutil.copytree(base, tmp_path / "mine")
    before = {file.name: file.read_bytes() for file in mine.iterdir()}
    export_vllm(trained, str(mine), tmp_path / "out", link=link, offline=True)
    own = GenerationConfig.from_pretrained(mine).eos_token_id
    ends = own if isinstance(own, list) else [own]
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [*ends, 7]
    assert "was trained to end its answers with" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in mine.iterdir()} == before


def test_a_folder_that_is_not_empty_and_an_exported_base_are_refused(
    base: Path, adapter: Path, served: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is not empty"):
        export_vllm(adapter, str(base), served, offline=True)
    with pytest.raises(UsageError, match="holds an adapter already"):
        export_vllm(adapter, str(served), tmp_path / "again", offline=True)


def test_transformers_never_answers_as_its_base(
    served: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in ("hf", "ray"):
        with pytest.raises(UsageError, match=r"exported for vLLM with an adapter.*--engine vllm.*--adapter"):
            open_engines(ModelOptions(model=str(served), engine=engine, worker="hf"))
    with pytest.raises(UsageError, match="exported for vLLM with an adapter"):
        load_named(str(served), "float32", note=print)
    if importlib.util.find_spec("vllm") is not None:
        serves = "cme_bench.engines.vllm.settings.require_vllm"
        monkeypatch.setattr(serves, lambda: "as installed")
        assert open_engines(ModelOptions(model=str(served))).computes == "vllm", "the one that can"
        monkeypatch.setattr(serves, _broken)
        with pytest.raises(
            UsageError, match=r"exported for vLLM with an adapter.*\(vLLM: a broken installation\)"
        ):
            open_engines(ModelOptions(model=str(served)))
    engines = open_engines(ModelOptions(model=str(served), engine="vllm"))
    with pytest.raises(UsageError, match="holds an adapter already"):
        engines.adapter(str(adapter))


def _broken() -> str:
    raise UsageError("a broken installation")


def test_the_printed_command_is_one_that_is_there(tmp_path: Path) -> None:
    command = shlex.split(serve_command(tmp_path / "two words"))
    assert command[-1] == str(tmp_path / "two words")
    if command[:2] == ["vllm", "serve"]:
        assert importlib.util.find_spec("vllm") is None or importlib.metadata.version("vllm")
    else:
        assert command[:4] == ["python", "-m", "vllm.entrypoints.openai.api_server", "--model"]
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version("vllm")


@contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator[Iterator[str]]:
    """The lines that a command writes, until it is told to stop."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    try:
        yield iter(process.stdout)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def wait_for(port: int) -> None:
    """Wait up to 30 s until something listens."""
    for _ in range(300):
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)


@pytest.fixture(scope="module")
def serving(base: Path, adapter: Path) -> Iterator[tuple[str, Path]]:
    """The address of a real server, started by the printed command, and the folder that it serves."""
    folder = base.parent / "serving"
    export_vllm(adapter, str(base), folder, offline=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f" --port {port} --host 127.0.0.1 --dtype float32 --max-model-len 64"
    options += " --enforce-eager --distributed-executor-backend uni"
    command = shlex.split(serve_command(folder) + options)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment |= {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    with started(command, environment) as lines:
        heard = []
        for line in lines:
            heard.append(line)
            if "Application startup complete" in line:
                break
        else:
            pytest.fail("".join(heard[-30:]))
        wait_for(port)  # the line comes just before the port is opened
        yield f"http://127.0.0.1:{port}", folder


def several(base: Path, out: Path) -> dict[str, Path]:
    """Export two adapters of different methods into one folder; their own folders by name."""
    model = LlamaForCausalLM.from_pretrained(base)
    folders = {
        "plain": save_adapter(model, base.parent / "plain", LoraConfig(**LORA), seed=4),
        "team": save_adapter(model, base.parent / "team", TeamLoraConfig(r=4, init="random"), seed=5),
    }
    first, second = (str(folder) for folder in folders.values())
    export_vllm(first, str(base), out, beside=(second,), offline=True)
    return folders


def test_several_adapters_in_one_folder_are_named_in_the_command(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "two words"
    folders = several(base, out)
    command = shlex.split(capsys.readouterr().out)
    named = [f"{name}={out / 'adapter' / name}" for name in folders]
    assert command[-5:] == ["--max-loras", "2", "--lora-modules", *named]
    assert "--enable-lora" in command
    assert block(out)["slots"].keys() == folders.keys()
    before = resolve_model(str(out)).hash
    file = out / "adapter" / "team" / "gated_adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    assert resolve_model(str(out)).hash != before
    with pytest.raises(UsageError, match="with several adapters; to evaluate them give the base"):
        run(RunOptions(str(out), tasks="cme_rte_ll", data="mini", engine="vllm", offline=True))


def test_adapters_that_cannot_share_a_server_are_refused(
    base: Path, adapter: Path, tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = LlamaForCausalLM.from_pretrained(base)
    dora = save_adapter(model, tmp_path / "dora", LoraConfig(**LORA, use_dora=True))
    own = shutil.copytree(adapter, tmp_path / "own")
    other = copy.deepcopy(toy_tokenizer)
    other.chat_template = "{{ messages[0]['content'] }}!"
    other.save_pretrained(own)
    twin = shutil.copytree(adapter, tmp_path / "elsewhere" / adapter.name)
    for beside, reason in ((dora, "use_dora"), (own, "a tokenizer of its own"), (twin, "has its name")):
        with pytest.raises(UsageError, match=reason):
            export_vllm(str(adapter), str(base), tmp_path / "out", beside=(str(beside),), offline=True)
    assert not (tmp_path / "out").exists()


@needs_vllm
@pytest.mark.slow
def test_a_folder_with_several_adapters_is_asked_by_their_names(base: Path, tmp_path: Path) -> None:
    """As vLLM's server does: by a LoRARequest for each. Folders and files that are not theirs are refused."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.lora.request import LoRARequest

    out = tmp_path / "served"
    folders = several(base, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
        settings: dict[str, Any] = {"dtype": "float32", "max_model_len": 64, "enforce_eager": True}
        settings |= {"distributed_executor_backend": "uni", "worker_extension_cls": WORKER}
        llm = LLM(str(out), **settings, enable_lora=True, max_loras=2)
        named = [None] + [
            LoRARequest(name, i + 1, str(out / "adapter" / name)) for i, name in enumerate(folders)
        ]
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        outputs = llm.generate([{"prompt_token_ids": IDS}] * 3, params, use_tqdm=False, lora_request=named)
        model = LlamaForCausalLM.from_pretrained(base)
        ids = torch.tensor([IDS])
        tables = [logits(model, ids), *(peft_logits(model, folder, ids) for folder in folders.values())]
        for output, table in zip(outputs, tables, strict=True):
            found = [next(iter(each.values())).logprob for each in output.prompt_logprobs[1:]]
            scores = table[0].log_softmax(-1)
            wanted = [float(scores[i, token]) for i, token in enumerate(IDS[1:])]
            assert found == pytest.approx(wanted, abs=1e-4)
        with pytest.raises(Exception, match=r"holds no gated_adapter\.safetensors; cme-bench"):
            llm.llm_engine.add_lora(LoRARequest("raw", 8, str(folders["team"])))
        with pytest.raises(Exception, match="was exported with"):
            llm.llm_engine.add_lora(LoRARequest("plain", 9, str(out / "adapter" / "team")))
        llm.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


@needs_vllm
@pytest.mark.slow
def test_the_printed_command_serves_the_adapter(base: Path, adapter: Path, serving: tuple[str, Path]) -> None:
    """A real server, asked over HTTP for the log-probabilities of a prompt's tokens."""
    url, folder = serving
    body = {"prompt": IDS, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    request = urllib.request.Request(
        f"{url}/v1/completions",
        json.dumps({"model": str(folder), **body}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)["choices"][0]["logprobs"]["token_logprobs"]
    model = LlamaForCausalLM.from_pretrained(base)
    ids = torch.tensor([IDS])
    for reference, same in ((peft_logits(model, adapter, ids), True), (logits(model, ids), False)):
        table = reference[0].log_softmax(-1)
        wanted = [float(table[i, token]) for i, token in enumerate(IDS[1:])]
        assert (found[1 : len(IDS)] == pytest.approx(wanted, abs=1e-3)) is same


@needs_vllm
@pytest.mark.slow
def test_engine_server_answers_as_engine_vllm(
    serving: tuple[str, Path], running: tuple[Path, Bench], toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The same folder behind a real server and in this process: texts, why they end, and likelihoods."""
    pytest.importorskip("openai")
    prompts = [tuple(IDS[: 3 + n]) for n in range(20)]
    asked = [GenerateRequest(p, 4 + n, ("e", "\n") if n % 3 == 0 else ()) for n, p in enumerate(prompts)]
    scored = [
        LoglikelihoodRequest(tuple((p, (k, k + 1, 7)[: 1 + k % 3]) for k in range(60, 64))) for p in prompts
    ]
    ours = running[1].vllm()
    server = Server(serving[0], concurrency=4)
    try:
        served = probe(server, None, toy_tokenizer)
        assert served.name == str(serving[1]) and served.max_length == 64
        assert served.dialect.ids and served.dialect.extras
        prove_likelihood(server, served, toy_tokenizer)
        engine = ServerEngine(server, served, toy_tokenizer, ours.end_ids, max_length=62)
        assert dict(engine.generate(asked)) == dict(ours.generate(asked))
        expected = dict(ours.loglikelihood(scored))
        for number, response in engine.loglikelihood(scored):
            assert response.logprobs == pytest.approx(expected[number].logprobs, abs=1e-4)
            assert response.greedy == expected[number].greedy
    finally:
        server.close()


@pytest.fixture(scope="module")
def running(
    base: Path, adapter: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[Path, Bench]]:
    """An exported folder and the vLLM that serves it, in this process."""
    folder = base.parent / "running"
    export_vllm(adapter, str(base), folder, offline=True)
    bench = Bench(folder, toy_tokenizer, LENGTH)
    bench.host.use(None, None)
    yield folder, bench
    bench.host.close()


def damage(folder: Path, fault: str) -> dict[str, Any]:
    """Do what ``fault`` says to an exported folder; its ``quantization_config`` afterwards."""
    file, found = folder / SUBFOLDER / ADAPTER_FILE, block(folder)
    spec = read_spec(file)
    tensors = load_file(file)
    if fault == "missing":
        file.unlink()
    elif fault == "a byte":
        content = bytearray(file.read_bytes())
        content[-2] ^= 64
        file.write_bytes(content)
    elif fault == "another export":
        write_adapter(file, spec, {name: 2 * tensor for name, tensor in tensors.items()})
    elif fault == "shape":
        name = f"{spec.modules[0]}.up"
        write_adapter(file, spec, {**tensors, name: tensors[name][1:]})
    elif fault == "settings":
        write_adapter(file, replace(spec, scale=2.0), tensors)
    if fault in {"shape", "settings"}:
        del found["adapter_sha256"]  # as folders of older versions
    return found


FAULTS = {
    "missing": "cannot be read",
    "a byte": "damaged",
    "another export": "of another export",
    "shape": r"has shape \[127, 8\], the model asks for \[128, 8\]",
    "settings": "differs .* in scale",
    "another quantisation": "would not be applied",
    "an adapter of the engine": "would not be applied",
}


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_is_not_applied_whole_stops_the_start(
    running: tuple[Path, Bench], tmp_path: Path, fault: str
) -> None:
    """The check that follows loading, with a model of the real vLLM and a folder that was damaged."""
    from cme_bench.vllm_plugin.config import GatedConfig
    from cme_bench.vllm_plugin.guard import check_model

    folder = shutil.copytree(running[0], tmp_path / "served")
    core = running[1].host._llm.llm_engine.engine_core.engine_core
    model = core.model_executor.driver_worker.worker.model_runner.model
    found = damage(folder, fault)
    quant_config: Any = GatedConfig.from_config(found)
    if fault == "another quantisation":
        quant_config = None
    elif fault == "an adapter of the engine":
        quant_config = GatedConfig(quant_config.spec, embedded=False)
    config = SimpleNamespace(model_config=SimpleNamespace(model=str(folder)), quant_config=quant_config)
    with pytest.raises(AdapterFileError, match=FAULTS[fault]) as raised:
        check_model(model, config)
    assert "\n" not in str(raised.value)


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "reason"),
    [("", "no layer .* can take an adapter"), (".layers.1.mlp", "no linear layer other.model.layers.1.mlp")],
    ids=["none", "all but one"],
)
def test_a_folder_whose_adapter_finds_no_layer_does_not_start(
    served: Path, toy_tokenizer: PreTrainedTokenizerFast, part: str, reason: str
) -> None:
    """vLLM itself, told nothing but the folder: as with an architecture whose layers have other names."""
    file = served / SUBFOLDER / ADAPTER_FILE
    spec, tensors = read_spec(file), load_file(file)

    def other(name: str) -> str:
        return f"other.{name}" if part in name else name

    moved = replace(spec, modules=tuple(sorted(map(other, spec.modules))))
    write_adapter(file, moved, {other(name): tensor for name, tensor in tensors.items()})
    config = json.loads((served / "config.json").read_text())
    config["quantization_config"] |= {"modules": list(moved.modules), "adapter_sha256": file_digest(file)}
    (served / "config.json").write_text(json.dumps(config))
    bench = Bench(served, toy_tokenizer, LENGTH)
    with pytest.raises(CmeError, match=rf"vLLM did not start: .*{reason}"):
        bench.host.use(None, None)


@needs_vllm
@pytest.mark.slow
def test_a_running_folder_answers_with_its_adapter(
    running: tuple[Path, Bench], base: Path, adapter: Path
) -> None:
    asked = LoglikelihoodRequest(((tuple(IDS[:-1]), (IDS[-1],)),))
    [(_, found)] = running[1].vllm().loglikelihood([asked])
    table = peft_logits(LlamaForCausalLM.from_pretrained(base), adapter, torch.tensor([IDS]))[0]
    assert found.logprobs[0] == pytest.approx(float(table.log_softmax(-1)[-2, IDS[-1]]), abs=1e-4)

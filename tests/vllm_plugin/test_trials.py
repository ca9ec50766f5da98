"""What a trial of kernels says; the kernels themselves are tried on a GPU (test_slot_kernels)."""

from __future__ import annotations

import logging

import pytest
import torch

from cme_bench.vllm_plugin import trials
from tests.support.gated_cases import SPECS

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("trial", "works", "said"),
    [
        (lambda *_: True, True, ""),
        (lambda *_: False, False, "other numbers than PyTorch"),
        (lambda *_: 1 / 0, False, "ZeroDivisionError"),
    ],
)
def test_kernels_that_fail_or_differ_are_left_out_with_a_warning(
    trial: object, works: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(trials, "_slots_agree", trial)
    monkeypatch.setattr(
        logging.getLogger("vllm.cme_bench"), "warning", lambda text, *values: heard.append(text % values)
    )
    for _ in range(2):
        assert trials.slots_work(SPECS["teamlora"], torch.float32, CPU) is works
    assert [said in message for message in heard] == ([] if works else [True])


@pytest.mark.parametrize(("agrees", "kept"), [(True, True), (False, False)])
def test_launches_that_give_other_numbers_are_no_longer_kept(
    agrees: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from cme_bench.vllm_plugin import launches

    monkeypatch.setattr(trials, "_launches_agree", lambda *_: agrees)
    before = launches.are_kept()
    launches.keep(True)
    try:
        assert trials.launches_work(SPECS["teamlora"], torch.float16, CPU) is agrees
        assert launches.are_kept() is kept
    finally:
        launches.keep(before)

"""The recipe on images: its training rows, its claims, and the whole of it on a tiny LLaVA."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest
from transformers import PreTrainedTokenizerFast

from cme_bench.experiments.reproduce.claims import paper_numbers
from cme_bench.experiments.reproduce.options import CallOptions
from cme_bench.experiments.reproduce.recipe import read_recipe
from cme_bench.experiments.reproduce.reproduce import reproduce
from cme_bench.experiments.reproduce.score_claims import score_claims
from cme_bench.experiments.reproduce.training_files import training_files
from cme_bench.util.errors import UsageError
from tests.support.tiny_llava import llava_processor, random_llava, save_llava, seeing

OURS = Path(__file__).resolve().parents[3] / "experiments" / "smollava.yaml"


@pytest.mark.parametrize("scale", ["h200", "middle", "short", "cpu", "smoke"])
def test_every_scale_is_read(scale: str) -> None:
    recipe = read_recipe(OURS, scale)
    assert recipe.training_tasks and recipe.identity()["training_tasks"] == recipe.training_tasks
    assert "_blind" in recipe.tasks
    if scale in ("h200", "middle", "short"):
        assert len(recipe.main) == 8 and recipe.seeds == 3


def test_training_rows_are_files_with_their_images_beside_them(tmp_path: Path) -> None:
    files = training_files("cme_mm,cme_mm_ll", "mini", tmp_path / "rows", limit=3)
    assert len(files) == 7 and len({file.parent for file in files}) == 7
    for file in files:
        rows = [orjson.loads(line) for line in file.read_bytes().splitlines()]
        assert len(rows) == 3
        assert all((file.parent / row["image"]).is_file() for row in rows)
        assert all(row["instruction"].startswith("<image>\n") and row["output"] for row in rows)
    before = [file.stat().st_mtime_ns for file in files]
    assert training_files("cme_mm", "mini", tmp_path / "rows", limit=3) == files
    assert [file.stat().st_mtime_ns for file in files] == before
    with pytest.raises(UsageError, match="training_tasks: cme_rte: the rows of none of them are made here"):
        training_files("cme_rte", "mini", tmp_path / "none")


def test_the_papers_numbers_on_texts_are_not_held_against_images() -> None:
    claims = score_claims(read_recipe(OURS, "short"), paper_numbers())
    reported = {(claim.b, claim.a): claim.reported for claim in claims}
    assert reported["teamlora-32", "moelora-32"] == pytest.approx(0.64)
    assert set(reported.values()) == {reported["teamlora-32", "moelora-32"], None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("claims: multimodal\n", "claims: pictures\n"),
        ("training_limit: 2000\n", "training_limit: 2000\nprotocol: {margin: 0.5}\n"),
    ],
)
def test_mistakes_are_refused(change: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    text = OURS.read_text()
    assert change in text
    file.write_text(text.replace(change, said))
    with pytest.raises(UsageError, match=str(file)):
        read_recipe(file, "smoke")


@pytest.mark.slow
def test_the_smoke_scale_runs_to_its_end(toy_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    own = seeing(toy_tokenizer)
    model = save_llava(tmp_path / "llava", random_llava(0, own, positions=512), llava_processor(own))
    file = tmp_path / "few.yaml"
    text = OURS.read_text().replace("only: [lora-32, moelora-32", "only: [moelora-32")
    file.write_text(
        text.replace("learning_rates: [1.0e-3, 3.0e-3]\n    tasks", "learning_rates: [1.0e-3]\n    tasks")
    )
    recipe = read_recipe(file, "smoke", model=str(model))
    assert len(recipe.rows) == 2 and recipe.learning_rates == (1e-3,)
    reproduce(recipe, CallOptions(tmp_path / "out", offline=True), lambda line: None)
    out = tmp_path / "out"
    table = (out / "tables" / "table1.md").read_text()
    for row in ("chance", "majority", "without images", "LLaVA-1.5-7B (paper, not comparable) ‡"):
        assert f"{row} " in table
    trained = json.loads((out / "adapters" / "teamlora-32-seed0" / "cme_training.json").read_bytes())
    columns = trained["mixture"]["datasets"][0]["parts"][0]["columns"]
    assert "image" in columns
    assert "None" not in (out / "claims.md").read_text()
    assert "efficiency" not in (out / "README.md").read_text()  # nothing of it is measured
    claims = json.loads((out / "claims.json").read_bytes())["claims"]
    assert len(claims) == 2 and not any("blind" in claim["claim"] for claim in claims)

"""Runs of tasks that show images: scores, keys, refusals, and a run that goes on after it was killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from cme_bench.cli import app
from cme_bench.engines.hf.wide_states import WideStates
from cme_bench.engines.requests import LoglikelihoodRequest
from cme_bench.engines.virtual import is_virtual
from cme_bench.images.image import Image, image_of
from cme_bench.runs.identity import response_key
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run as run_all
from cme_bench.runs.store import read_records, samples_file
from cme_bench.util.errors import UsageError
from tests.support.pictures import encoded, picture
from tests.support.seen import Seeing
from tests.support.tiny_llava import llava_processor, random_llava, save_llava, seeing
from tests.support.tiny_vlms import qwen2_vl

TASK = """\
task: {name}
dataset_path: own/data
test_split: test
fewshot_split: test
output_type: {kind}
doc_to_image: [picture]
doc_to_text: "<image>\\n{{{{ question }}}}\\nA:"
{more}
metadata:
  dataset: own
"""
CHOICES = 'doc_to_choice: ["no", "yes"]\ndoc_to_target: label'
WRITTEN = (
    "doc_to_target: \"{{ ['no', 'yes'][label] }}\"\ngeneration_kwargs: {max_gen_toks: 4, until: [\"\\n\"]}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"
)
QUESTIONS = ("a dog?", "a cat?", "red?", "large?")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    own = seeing(toy_tokenizer)
    model = random_llava(0, own, positions=128)
    return save_llava(tmp_path_factory.mktemp("llava"), model, llava_processor(own))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A likelihood task and a generated one, both of two pictures with four questions each."""
    rows = tmp_path / "data" / "own"
    rows.mkdir(parents=True)
    for seed in (0, 1):
        (rows / f"{seed}.png").write_bytes(encoded(picture(40, 30, seed)))
    lines = [
        {"picture": f"{i % 2}.png", "question": question, "label": n % 2}
        for i in (0, 1)
        for n, question in enumerate(QUESTIONS)
    ]
    (rows / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tasks").mkdir()
    for name, kind, more in (("see_ll", "multiple_choice", CHOICES), ("see", "generate_until", WRITTEN)):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, kind=kind, more=more))
    return tmp_path


def asked(model: Path, pictures: Path, out: str = "out", **changes: Any) -> RunOptions:
    settings: dict[str, Any] = {
        "tasks": "see_ll,see",
        "include": (pictures / "tasks",),
        "data": str(pictures / "data"),
        "out": pictures / out,
        "prompt_format": "plain",
        "bos": "never",
    }
    return RunOptions(model=str(model), **settings | changes)


def records(folder: Path, task: str) -> list[Any]:
    return sorted(read_records(samples_file(folder, task)), key=lambda record: record.id)


def rows_of(pictures: Path) -> list[tuple[str, Image]]:
    lines = (pictures / "data" / "own" / "test.jsonl").read_text().splitlines()
    rows = [orjson.loads(line) for line in lines]
    folder = pictures / "data" / "own"
    return [(f"<image>\n{row['question']}\nA:", image_of(folder / row["picture"])) for row in rows]


def test_a_run_has_the_answers_of_the_plain_forward(llava: Path, pictures: Path) -> None:
    [folder] = run_all(asked(llava, pictures))
    seen = Seeing.load(llava)
    choices = [tuple(seen.tokenizer(f" {word}")["input_ids"]) for word in ("no", "yes")]
    for record, (text, image) in zip(records(folder, "see_ll"), rows_of(pictures), strict=True):
        plain = [seen.logprob(text, [image], choice) for choice in choices]
        assert record.response.logprobs == pytest.approx(plain, abs=1e-4)
    for record, (text, image) in zip(records(folder, "see"), rows_of(pictures), strict=True):
        tokens = seen.greedy(text, [image], 4, [seen.tokenizer.eos_token_id])
        written = seen.tokenizer.decode(tokens, skip_special_tokens=True).split("\n")[0]
        assert record.response.text == written
    run = orjson.loads((folder / "run.json").read_bytes())
    assert run["engine"]["images"] == "each computed once"
    assert run["engine"]["image_processor"].startswith("LlavaImageProcessorPil (Pillow ")
    assert run["identity"]["processor"] == seen.vision.fingerprint


def test_a_model_that_sees_is_tried_by_engines_that_know_of_images(
    llava: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[torch.nn.Module | None] = []
    own = WideStates.__init__

    def counted(states: WideStates, model: torch.nn.Module, part: torch.nn.Module | None = None) -> None:
        looked.append(part)
        own(states, model, part)

    monkeypatch.setattr(WideStates, "__init__", counted)
    run_all(asked(llava, pictures, dtype="bfloat16"))
    assert len(looked) == 1 and looked[0] is not None, "the language model's layers, not the tower's"


def test_a_run_goes_on_where_it_was_killed(llava: Path, pictures: Path) -> None:
    [folder] = run_all(asked(llava, pictures, tasks="see_ll"))
    whole = records(folder, "see_ll")
    file = samples_file(folder, "see_ll")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # as a killed process leaves it
    (folder / "results.json").unlink()
    [again] = run_all(asked(llava, pictures, tasks="see_ll"))
    assert again == folder
    for after, before in zip(records(folder, "see_ll"), whole, strict=True):
        assert after.key == before.key
        assert after.response.logprobs == pytest.approx(before.response.logprobs, abs=1e-5)


def test_pixels_and_settings_are_in_the_key(llava: Path, pictures: Path, tmp_path: Path) -> None:
    [folder] = run_all(asked(llava, pictures, tasks="see_ll"))
    before = [record.key for record in records(folder, "see_ll")]
    file = pictures / "data" / "own" / "0.png"
    file.write_bytes(encoded(picture(40, 30, 0), "PNG", compress_level=0))  # the same pixels
    [folder] = run_all(asked(llava, pictures, "same", tasks="see_ll"))
    assert [record.key for record in records(folder, "see_ll")] == before
    file.write_bytes(encoded(picture(40, 30, 7)))
    [folder] = run_all(asked(llava, pictures, "other", tasks="see_ll"))
    after = [record.key for record in records(folder, "see_ll")]
    assert [a != b for a, b in zip(after, before, strict=True)] == [True] * 4 + [False] * 4

    padded = tmp_path / "padded"
    shutil.copytree(llava, padded)
    settings = orjson.loads((padded / "processor_config.json").read_bytes())
    settings["image_processor"]["do_pad"] = True
    (padded / "processor_config.json").write_bytes(orjson.dumps(settings))
    assert Seeing.load(padded).vision.fingerprint != Seeing.load(llava).vision.fingerprint


def test_a_key_holds_the_whole_digest() -> None:
    one, other = (Image(digest * 64, 4, 4, b"") for digest in "ab")
    requests = [LoglikelihoodRequest((((1 << 62,), (3,)),), (image,)) for image in (one, other)]
    assert len({response_key({}, request) for request in requests}) == 2


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_chats_place_images_as_the_model_does(
    family: str, llava: Path, pictures: Path, tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = llava if family == "llava" else qwen2_vl(tmp_path / "qwen", toy_tokenizer)
    [folder] = run_all(asked(model, pictures, prompt_format="chat", tasks="see_ll"))
    seen = Seeing.load(model)
    choices = [tuple(seen.tokenizer(word)["input_ids"]) for word in ("no", "yes")]
    for record, (text, image) in zip(records(folder, "see_ll"), rows_of(pictures), strict=True):
        question = text.removeprefix("<image>\n")
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        prompt = seen.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        plain = [seen.logprob(prompt, [image], choice) for choice in choices]
        assert record.response.logprobs == pytest.approx(plain, abs=1e-4)


def test_exemplars_bring_their_images(llava: Path, pictures: Path) -> None:
    [folder] = run_all(asked(llava, pictures, shots=2, limit=2, tasks="see_ll"))
    shown = orjson.loads((folder / "run.json").read_bytes())["tasks"]["see_ll"]
    assert shown["shots"] == 2 and shown["truncated"] == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"settings": {"max_length": 24}},
            r"test\.jsonl:\d: task see_ll: the prompt with 1 image has .* never cut",
        ),
        ({"settings": {"max_length": 100}, "shots": 6}, r"with 7 images has .* use fewer shots"),
    ],
)
def test_images_are_never_cut(changes: Any, said: str, llava: Path, pictures: Path) -> None:
    with pytest.raises(UsageError, match=said):
        run_all(asked(llava, pictures, tasks="see_ll", **changes))


def test_a_text_model_is_not_asked_about_images(tiny_checkpoint: Path, pictures: Path) -> None:
    with pytest.raises(UsageError, match=r"task see_ll shows images .* reads text alone"):
        run_all(asked(tiny_checkpoint, pictures))


def test_a_processor_that_is_missing_is_needed_for_images_alone(
    llava: Path, pictures: Path, tmp_path: Path
) -> None:
    blind = tmp_path / "blind"
    shutil.copytree(llava, blind)
    (blind / "processor_config.json").unlink()
    with pytest.raises(UsageError, match="blind: its processor of images cannot be loaded"):
        run_all(asked(blind, pictures))
    text = {"tasks": "cme_rte_ll", "data": "mini", "limit": 4, "include": ()}
    [folder] = run_all(asked(blind, pictures, "text", **text))
    [whole] = run_all(asked(llava, pictures, "whole", **text))
    values: Sequence[Any] = [
        [r.response.logprobs for r in records(each, "cme_rte_ll")] for each in (folder, whole)
    ]
    assert values[0] == values[1]


def test_virtual_ids_lie_beyond_every_vocabulary() -> None:
    assert not is_virtual(2**62 - 1) and is_virtual(2**62)


def test_preview_and_check_read_images_as_a_run_does(llava: Path, pictures: Path) -> None:
    suite = ["--include", str(pictures / "tasks"), "--data", str(pictures / "data"), "--model", str(llava)]
    shown = CliRunner().invoke(app, ["tasks", "preview", "see_ll", *suite], catch_exceptions=False)
    assert "<image: 16 tokens>" in shown.stdout
    files = [str(pictures / "tasks"), *suite[2:]]
    checked = CliRunner().invoke(app, ["tasks", "check", *files], catch_exceptions=False)
    assert "prompts of 25 to 27 tokens" in checked.stdout, checked.stdout


def test_a_processor_that_does_not_tell_of_places_is_refused(llava: Path) -> None:
    """As those of transformers before 5.19 are."""
    vision = Seeing.load(llava).vision

    class Silent(type(vision.processor)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            output = super().__call__(*args, **kwargs)
            output.pop("text_replacement_offsets", None)
            return output

    vision.processor.__class__ = Silent
    with pytest.raises(UsageError, match="does not say what it puts in the place of an image"):
        vision.layout(image_of(encoded(picture(40, 30, 0))))

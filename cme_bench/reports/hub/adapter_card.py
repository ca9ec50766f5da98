"""The model card of an adapter: what it is, how it was trained, its scores, how to load it and cite it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData

from cme_bench.models.adapter import TRAINING_FILE as TRAINING
from cme_bench.models.hub_name import parse_hub_name
from cme_bench.models.smollm2 import HUB_NAME as SMOLLM2
from cme_bench.reports.card import eval_results, front_matter
from cme_bench.reports.intervals import estimate_of, interval_of
from cme_bench.reports.runs import RunView, watermarks
from cme_bench.reports.scores import AVERAGE
from cme_bench.util.files import read_json

if TYPE_CHECKING:
    from cme_bench.adapters.registry import Method

MARK = "<!-- made by cme-bench card -->"
"""By which a card of ours is known again."""


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """The facts of an adapter's folder: PEFT's config, and the record of its training, empty without one."""

    folder: Path
    config: Mapping[str, Any]
    training: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> AdapterFacts:
        """Read both. UsageError if the folder is no adapter, or a file of it is broken."""
        config = read_json(folder / "adapter_config.json", kind="an adapter")
        training = read_json(folder / TRAINING) if (folder / TRAINING).is_file() else {}
        return cls(folder, config, training)

    @property
    def base(self) -> str | None:
        """The hub's name of the base; None where it is known by a folder only."""
        named = str(self.config.get("base_model_name_or_path") or "")
        if self.training.get("base", {}).get("name") == "smollm2" or named == "smollm2":
            return SMOLLM2
        return named if not Path(named).is_absolute() and parse_hub_name(named) is not None else None

    @property
    def ours(self) -> bool:
        """Whether PEFT knows its method only through this package."""
        method = _method(str(self.config.get("peft_type", "")))
        return method is not None and not method.is_pefts


def adapter_card(run: RunView, facts: AdapterFacts, repository: str) -> str:
    """Return the README of an adapter's repository, ``owner/name``: front matter and text."""
    method = _cell(run.method)
    data = ModelCardData(
        base_model=facts.base,
        library_name="peft",
        tags=["cme-bench", method],
        model_name=repository.rpartition("/")[2],
        eval_results=eval_results(run),
    )
    base = facts.base or run.run.model.name
    version = run.run.versions.get("cme-bench", "")
    parts = [
        MARK,
        f"# {repository.rpartition('/')[2]}",
        f"An adapter of `{base}` by the method {method}.",
        _table(_facts(run, facts)),
        "## Scores",
        _scores(run),
        "## Use",
        _use(run, facts, repository, base),
        "## Cite",
        _cite(method, version),
    ]
    return front_matter(run, data) + "\n" + "\n\n".join(parts) + "\n"


def _facts(run: RunView, facts: AdapterFacts) -> Iterator[tuple[str, str]]:
    """Yield what a table says of the adapter and its training; what is not recorded has no row."""
    own, training = run.run.adapter, facts.training
    arguments = training.get("arguments", {})
    if own is not None:
        experts = f", {own.experts} experts" if own.experts else ""
        rank = f" of rank {own.rank}" if own.rank else ""
        yield "method", f"{own.method}{rank}{experts}"
        if own.targets:
            yield "layers", ", ".join(sorted(own.targets))
        if own.parameters:
            share = f" ({own.percent:.2f} % of the base)" if own.percent else ""
            yield "parameters", f"{own.parameters:,}{share}"
    if not training:
        yield "training", "not recorded"
        return
    mixture = training.get("mixture", {})
    sets = [str(each.get("dataset")) for each in mixture.get("datasets", [])]
    if sets:
        yield "data", f"{', '.join(sets)} ({mixture.get('examples', 0):,} examples)"
    if training.get("steps"):
        batch = arguments.get("batch_size", 1) * arguments.get("accumulate", 1)
        yield "steps", f"{training['steps']:,} of {batch} examples, {training['tokens_trained']:,} tokens"
    for name, key in (("learning rate", "learning_rate"), ("dropout", "dropout"), ("seed", "seed")):
        if key in arguments:
            yield name, str(arguments[key])
    if training.get("final_loss") is not None:
        yield "loss at the end", f"{training['final_loss']:.3f} nats a token of the answer"
    hardware = training.get("hardware", {})
    yield "hardware", ", ".join(hardware.get("devices") or [str(hardware.get("processor", "unknown"))])
    yield "prompt format", f"`{training.get('prompt_format')}`: it is saved, and cme-bench follows it"
    if training.get("commit"):
        yield "code", f"cme-bench commit {training['commit']}"


def _scores(run: RunView) -> str:
    """Return a table by domain with 95 % intervals, below what a reader must know of the numbers."""
    lines = [mark for mark in watermarks([run]) if not mark.startswith("UNFINISHED")]
    lines += [] if run.finished else ["UNFINISHED: some tasks have no score yet."]
    lines.append("CME is cme-bench's documented reconstruction of the TeamLoRA paper's benchmark.")
    rows = [("form", "domain", "score", "95 % interval", "n")]
    for form, summary in run.results.forms.items():
        measure = run.measure(form)
        for column in (*summary.domains, AVERAGE):
            found = estimate_of(run, form, column)
            if found is None:
                continue
            value, low, high = interval_of(run, form, column)
            ends = f"{measure.shown(low)} to {measure.shown(high)}" if low < high else "–"
            rows.append((form, column, measure.shown(value), ends, str(found.n)))
    return "\n".join(lines) + "\n\n" + _table(rows[1:], rows[0])


def _use(run: RunView, facts: AdapterFacts, repository: str, base: str) -> str:
    register = "import cme_bench.adapters  # pip install cme-bench: it registers the method with PEFT\n"
    alone = (
        "With `peft` alone (its own method):"
        if not facts.ours
        else f"With `peft`, which knows {_cell(run.method)} once cme-bench is imported:"
    )
    return f"""With cme-bench:

```
cme-bench run {"smollm2" if base == SMOLLM2 else base} --adapter {repository}
```

{alone}

```python
{register if facts.ours else ""}from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
tokenizer = AutoTokenizer.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{repository}")
```"""


def _cite(method: str, version: str) -> str:
    known = _method(method)
    paper = f"The method: {known.paper}.\n" if known is not None and known.paper else ""
    return f"""{paper}The evaluation:

```
@software{{cme_bench, title = {{cme-bench: evaluation of multi-task adapters on CME}},
  version = {{{version}}}, author = {{The cme-bench maintainers}}, year = {{2026}}}}
```"""


def _method(name: str) -> Method | None:
    from cme_bench.adapters import registry  # imports torch

    return registry.find(name.upper())


def _table(rows: Any, head: tuple[str, ...] = ("", "")) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(_cell(each) for each in row)} |" for row in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

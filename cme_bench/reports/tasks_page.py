"""``docs/tasks.md``: every built-in task in two tables, made from the task files (``make docs``)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cme_bench.tasks.identity import config_hash
from cme_bench.tasks.spec import ADDED, GENERATED, LIKELIHOOD, TaskSpec
from cme_bench.tasks.suite import VERSIONS, Suite, load_suite

_PREFACE = """\
# The tasks

This page is made from the task files in [`tasks/`](../tasks) by `make docs`; a test keeps it current.

## The paper's part, and ours

From the TeamLoRA paper (arXiv 2408.09856): CME is a comprehensive multi-task evaluation of **22 datasets**
in **11 tasks**, reported as one average a method. The paper's per-dataset scores, the list of its datasets,
its prompts, its answer extraction and its metrics are published nowhere that we could find.

Everything else on this page is **our reconstruction**: the choice of 22 datasets, their 11 domains, the
scored splits, the prompts, the options' letters, the extraction rules and the metric of each task. So is the
average, which is macro: a dataset over its tasks, a domain over its datasets, the average over the domains.
Our numbers can be compared with each other, not with the paper's. `cme_extra` is not part of the 22 and never
enters their averages.

The instructions are ours: one fixed wording a dataset for evaluation (below: the task's own file) and at
least four paraphrases for training (`cme_bench/training/templates/`). Licences and citations are from the
dataset cards and papers as we know them; check them before you publish data.
"""

_FORMS = """\
## Tasks

`generate`: the model's answer is read by named rules. `likelihood`: the choices' log-likelihoods are
compared. `items`: the scored split as published. `random`: the score of guessing, in %. `hash`: the first 8
digits of sha256 over the resolved task file without rows. [`tasks/lock.json`](../tasks/lock.json) says
since when it holds.
"""

_CME2 = """\
## Version 2 of the suite

`cme2` and `cme2_ll` are CME's tasks and one more in the domain `entailment`: `cme_snli_2way`. RTE has 277
items, so with 500 items of the other tasks it brings more than half of an average's item variance. Version 2
halves its weight. `cme` and `cme_ll` stay as they are, and their tables with them. An average of one version
is not compared with one of the other.

* **Rows.** SNLI's validation split, which no task of `cme` scores: 9,842 pairs with a label. In a data folder
  they are `snli/validation.jsonl`, or `snli/train_from_validation.jsonl` where that is absent.
* **Question.** RTE's wording, yes or no. Neutral and contradiction both mean "no", as in RTE's own two-way
  form. "No" is the right answer to about two of three items.
* **Never train on it.** From a data folder SNLI's validation rows are part of the training mixture. `train
  --spare cme2` leaves out every row that a task of version 2 scores. An adapter that was trained on the file
  that a task scores is refused by `run`.

The hash of a suite covers its tasks' names and hashes.
"""

_LLM_ADAPTERS = """\
## commonsense8 and math4

The eight commonsense and four mathematics sets on which the adapter papers after LLM-Adapters (Hu et al.
2023, arXiv 2304.01933) report, with that repository's prompts and rules:

* **Prompt.** The instruction stands in the format `llm-adapters`: "Below is an instruction that describes a
  task", with the script's 16 blanks. It is the task's own, also for a model with a chat template. An
  adapter's saved format and `--format` go before it. BoolQ is asked without its passage.
* **Answer.** `acc` is the published rule: the first label that occurs anywhere (`true`, ...), for
  AQuA the first of the letters A to E, for the others the last number, within 0.001. `acc_stated` beside it
  is read by our own rules: the published ones give false credit, as to "not true".
* **Decoding** is greedy, with 32 (commonsense) and 256 new tokens; the script searches with four beams.
* **Rows.** The prompts and right answers of six sets equal the repository's files on every row that we have
  (BoolQ, WinoGrande, ARC, OpenBookQA, GSM8K). HellaSwag's file is too large for our copy. SVAMP is scored
  on all 1,000 items. MAWPS on the hub has another split than the repository's 238 items: put those into
  `DIR/mawps/test.jsonl` with `--data DIR` to score them.

The training files of the same repository are [named mixtures](training.md#rows-of-your-own).
"""

_MULTIMODAL = """\
## cme_mm: a stand-in for the multimodal row

The paper measures its adapters on LLaVA-1.5-7B too. No set of its benchmarks can be shipped or fetched
here, so `cme_mm` (generated) and `cme_mm_ll` (likelihood) are a **stand-in** on freely licensed
pictures. Their scores are compared with each other, never with the paper's, and never enter CME's
averages.

* **Rows** are made on your machine from packages, by seeds: on first use into the user cache, or by
  `cme-bench fetch --tasks cme_mm,cme_mm_ll --out DIR` into a folder. easy-VQA comes by pip, the emoji by
  npm, which must be installed; digits are scikit-learn's. `--data mini` has a few pictures of our own.
* **Unseen style.** Training rows show Noto's emoji, the scored ones Twemoji's: the same things, another
  hand.
* **emoji_pope** follows POPE: absent things are drawn at random, are the most popular, or are those that
  most often go with what is there.
* **Baselines.** `random` is guessing. `majority_baseline` in a task's file is the most frequent answer.
  The third is the same model without the images: `NAME_blind` is a task, suite or domain whose questions
  are asked as text alone (`--tasks cme_mm,cme_mm_blind`). A model that reads images must beat it. It
  works for any task with `doc_to_image`.
* **Tables.** `cme-bench table` and `report` put all three below the scores, a column a dataset, and say what
  the images add to the average, with an interval. Both runs must have asked the same items; else the
  blind one has a table of its own. With `--paper` the paper's two averages on LLaVA-1.5-7B stand below,
  marked as not comparable.
* **Training.** `cme-bench fetch --tasks cme_mm --train --out DIR` writes the training rows. The recipe
  [smollava](reproduction.md#on-images) trains and compares eight methods on them.

`smollava` is a model for it, made on your machine.

## llava15: the benchmarks of LLaVA-1.5

Nine of the ten benchmarks that LLaVA-1.5 reports, for those who have its weights and the rows: `--tasks
llava15`. Prompts and scores equal lmms-eval's; a test holds them to what its own functions gave on the
same responses. Each image stands before its question.

* **Rows** are those of the hub's `lmms-lab/*`: from the hub, or with `--data DIR` as its Parquet files
  in `DIR/pope/data/`, `DIR/scienceqa/ScienceQA-IMG/`, ... (`SPLIT-00000-of-00003*.parquet`, all parts of
  a split). They are read into memory. GQA's images are files, `images/ID.jpg` beside its rows.
* **MM-Vet** is not among them: GPT-4 judges its answers, and nothing here asks it.
* **MMBench** is read by rules, with CircularEval over the rotations that the rows hold. The authors ask
  a language model where the rules find nothing.
* **POPE** has `answered_yes`, the ratio of yes among responses, in place of lmms-eval's
  `pope_yes_ratio`, which is that of the right answers.
* **MME** sums over categories; a run with `--limit` that cuts a pair of questions has no score.
"""

_DATASETS = """\
## Datasets

`exemplars`: the split of few-shot examples, and how they are drawn (`first_n`: its first rows, the same for
every item; `default`: by seed and item). `clusters`: the column that items with a common passage share;
standard errors must respect it.
"""


_LM_EVAL = """\
## Task files of lm-eval

`lm_eval:NAME` runs a task of the installed lm-eval, `lm_eval:FILE.yaml` and `--include FOLDER` run files of
your own in its format. Every key, metric, filter and aggregation of lm-eval 0.4.13 stands in one table
([`harness/lm_eval_table.py`](../cme_bench/harness/lm_eval_table.py)). It is honoured, has no effect (as in
lm-eval), or is refused with file and line before a model is loaded. Anything that the table does not name is
refused.

* **Metrics and aggregations** are lm-eval's own functions, with its bootstrap of 100 resamples where it has
  one. A score has a scale and a direction. Shares are shown in percent; BLEU, chrF and TER are points of
  100 already; a perplexity is shown as it is. Means are taken over tasks of one bounded scale and
  direction. A metric of a task's own code is a share if its name says so (`acc`, `f1`, ...) and its values
  lie in 0 to 1; else it is shown raw, without a mean, until `metadata: {scales: {NAME: share}}` (or
  `points`) says more. `higher_is_better` gives the direction.
* **Exemplars** come from `fewshot_split`, from `fewshot_config.samples`, or from the training or validation
  split, as in lm-eval. An item is never its own exemplar; in lm-eval it may be where a validation split is
  scored.
* **Sampling** (`do_sample`, `temperature`, `top_p`, `top_k`) and `repeats` mean what they mean there:
  [Sampling and thinking](sampling.md). Greedy answers are asked for once; beam search is refused.
* **Scoring is tried** on made-up answers to the first rows before a model is loaded.
* **Code** of a task file (`!function`) runs with `--allow-code` only, and never fetches a metric from the
  hub.
* **Rows** beside a task file have the values that lm-eval reads from the same files. In JSON it takes
  columns of dates for times of a day (`2020-01-01 00:00:00`), rounds integers beyond 64 bits, and keeps of
  each mapping its own keys. Tasks whose answers are read here (`metadata.answer`, or our class) have the
  texts as they stand there.
* **Folders**: group files are passed over, and `trust_remote_code` has no effect. `data_files` may be a file,
  a pattern (`part-*.jsonl`), a list or a mapping, `.json` an array. Files may be packed (`.gz`, `.bz2`,
  `.xz`, `.zst`, or `.zip` around one file); csv files take the settings that `datasets` takes. A file that
  cannot be used stops only the runs that ask for its task.

Of the YAML files of lm-eval 0.4.13 (a test counts them, and compares the prompts and scores of over 200
kinds with stock lm-eval on made-up rows and answers):

| files | number |
|---|---|
| run | 12146 |
| groups, which are not read | 855 |
| refused: a metric of the hub (`hf_evaluate`) | 757 |
| refused: `loglikelihood_rolling` | 66 |
| refused: rows made by code (`custom_dataset`) | 45 |
| refused: `unsafe_code` | 35 |
| refused: a Python class (`class`) | 30 |
| refused: a filter that lm-eval does not register | 16 |
| refused: rows of another commit or with other types (`dataset_kwargs`) | 12 |
| refused: no task: only there to be included | 7 |
| refused: beam search | 6 |
| refused: answers that a model of a server judges | 6 |
| refused: sound (`doc_to_audio`) | 1 |
| refused: a metric without an aggregation | 1 |
| refused: an unknown option of a metric | 1 |
| refused: a metric that lm-eval does not have | 1 |
"""


def tasks_page(suite: Suite) -> str:
    """Return the page for all tasks of a suite, in its order."""
    specs = list(suite.tasks.values())
    cme = suite.select(f"{GENERATED},{LIKELIHOOD}")
    counts = (
        f"{len({spec.dataset for spec in cme})} datasets in {len({spec.domain for spec in cme})} domains: "
        f"{sum(spec.output_type == 'generate_until' for spec in cme)} generated and "
        f"{sum(spec.output_type != 'generate_until' for spec in cme)} likelihood tasks; "
        f"{_tagged(specs, 'cme_extra')} more in `cme_extra`, {_tagged(specs, 'commonsense8')} in "
        f"`commonsense8`, {_tagged(specs, 'math4')} in `math4` and {_tagged(specs, 'cme_mm')} in "
        f"`cme_mm` and {_tagged(specs, 'llava15')} in `llava15`; {_tagged(specs, ADDED)} in `cme2` alone."
    )
    tasks = _table(
        ("domain", "dataset", "task", "form", "metric", "items", "random", "hash"), map(_task, specs)
    )
    first = {(spec.domain, spec.folder): spec for spec in reversed(specs)}
    folders = [spec for spec in specs if first[spec.domain, spec.folder] is spec]
    columns = ("dataset", "hub id", "scored split", "exemplars", "clusters", "licence", "citation", "note")
    datasets = _table(columns, map(_dataset, folders))
    return "\n".join(
        [
            _PREFACE,
            _FORMS,
            counts,
            "",
            tasks,
            "",
            _version_2(suite),
            _LLM_ADAPTERS,
            _MULTIMODAL,
            _DATASETS,
            datasets,
            "",
            _LM_EVAL,
        ]
    )


def _version_2(suite: Suite) -> str:
    """Return what is said of version 2, with the hash of each suite."""
    names = (GENERATED, LIKELIHOOD, *VERSIONS)
    rows = [(f"`{name}`", str(len(suite.select(name))), f"`{suite.hash_of(name)[:8]}`") for name in names]
    return f"{_CME2}\n{_table(('suite', 'tasks', 'hash'), rows)}\n"


def _tagged(specs: Iterable[TaskSpec], suite: str) -> int:
    """Return the number of tasks of a suite, in both forms."""
    return sum(not {suite, f"{suite}_ll"}.isdisjoint(spec.tags) for spec in specs)


def _task(spec: TaskSpec) -> Sequence[str]:
    return (
        spec.domain,
        spec.dataset,
        f"`{spec.name}`",
        "generate" if spec.generated else "likelihood",
        spec.primary,
        str(spec.items),
        _percent(spec.metadata.get("random_baseline")),
        f"`{config_hash(spec.config)[:8]}`",
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _dataset(spec: TaskSpec) -> Sequence[str]:
    config = spec.config
    sampler = (config.get("fewshot_config") or {}).get("sampler", "default")
    name = config.get("dataset_name")
    return (
        spec.folder,
        f"{config['dataset_path']}{f' ({name})' if name else ''}",
        spec.eval_split,
        "none" if spec.fewshot_split is None else f"{spec.fewshot_split} ({sampler})",
        str(spec.metadata.get("cluster", "")),
        str(spec.metadata["licence"]),
        str(spec.metadata["citation"]),
        str(spec.metadata.get("note", "")),
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def lines() -> Iterator[str]:
        yield f"| {' | '.join(columns)} |"
        yield f"|{'---|' * len(columns)}"
        for row in rows:
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"

    return "\n".join(lines())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(tasks_page(load_suite()), encoding="utf-8")

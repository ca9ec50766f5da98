"""The table of lm-eval's task files: every key, metric, filter and aggregation, and what becomes of it.

``honoured``: it means what it means in lm-eval, and tests hold the scores equal. ``no effect``: lm-eval
itself does nothing with it that a score depends on. ``refused``: the task does not run, and one line says
why. What is not in the table is refused as unknown; a test compares the table with the installed lm-eval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cme_bench.scoring.generation import GENERATE_UNTIL

Treatment = Literal["honoured", "no effect", "refused"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One row. ``why``: the reason of a refusal, or what there is to know."""

    treatment: Treatment
    why: str = ""


HONOURED, NO_EFFECT = Rule("honoured"), Rule("no effect")


def _honoured(names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), HONOURED)


_MADE_ROWS = Rule("refused", "rows that code makes are not read; write them to a file")
_AUDIO = Rule("refused", "sound is not played to a model here, and scoring the text alone says nothing")

TASK_KEYS: Mapping[str, Rule] = {
    **_honoured(
        """task tag dataset_path dataset_name dataset_kwargs training_split validation_split test_split
        fewshot_split process_docs doc_to_text doc_to_target doc_to_choice process_results description
        target_delimiter fewshot_delimiter fewshot_config num_fewshot output_type generation_kwargs
        metric_list filter_list gen_prefix metadata"""
    ),
    "repeats": Rule("honoured", "greedy answers are all the first; it is asked once"),
    "task_alias": NO_EFFECT,
    "should_decontaminate": NO_EFFECT,
    "doc_to_decontamination_query": NO_EFFECT,
    "custom_dataset": _MADE_ROWS,
    "doc_to_image": Rule("honoured", "PNG, JPEG and WebP; files of rows may name them by path"),
    "doc_to_audio": _AUDIO,
    "unsafe_code": Rule("refused", "code that a model writes is never run"),
    "use_prompt": Rule(
        "refused", "prompts of promptsource are not read; write doc_to_text and doc_to_target"
    ),
}
"""Fields of lm-eval's TaskConfig."""

LOADER_KEYS: Mapping[str, Rule] = {
    "include": HONOURED,
    "class": Rule("honoured", "a class on cme_bench.tasks.cme_task.CmeTask"),
    "group": Rule("no effect", "a task that names a group is read as a task"),
}
"""Keys that lm-eval's loader takes beside those."""

GROUP_KEYS = frozenset(
    "group group_alias task aggregate_metric_list aggregation tag metadata include".split()
)
"""Keys of a group file (lm-eval's GroupConfig): it defines no task, so it is passed over."""

FEWSHOT_KEYS: Mapping[str, Rule] = {
    **_honoured(
        """sampler split process_docs samples doc_to_text doc_to_choice doc_to_target gen_prefix
        fewshot_delimiter target_delimiter"""
    ),
    "fewshot_indices": Rule("refused", "lm-eval 0.4.13 reads it nowhere; write the rows as samples"),
}
"""Fields of lm-eval's FewshotConfig."""

SAMPLERS: Mapping[str, Rule] = {
    "default": Rule("honoured", "drawn by seed, task and item, not in a sequence over items"),
    "first_n": HONOURED,
}

OUTPUT_TYPES: Mapping[str, Rule] = {
    **_honoured("generate_until multiple_choice loglikelihood"),
    "loglikelihood_rolling": Rule("refused", "whole texts are not scored (no windows over long texts)"),
}

GENERATION_KEYS: Mapping[str, Rule] = {
    **_honoured("until max_gen_toks max_new_tokens max_tokens max_completion_tokens"),
    "do_sample": Rule("honoured", "true needs a temperature"),
    "temperature": Rule("honoured", "above 0 it samples, unless do_sample is false"),
    "top_p": HONOURED,
    "top_k": HONOURED,
    "min_p": Rule("honoured", "0 only where answers are sampled"),
    "num_beams": Rule("honoured", "1 only: there is no beam search"),
}
"""Settings of generation; lm-eval passes any others on to its engine."""
LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""In lm-eval's order: the first that is there counts."""

METRIC_KEYS: Mapping[str, Rule] = {
    **_honoured("metric aggregation higher_is_better"),
    "hf_evaluate": Rule("refused", "code of the hub is not run"),
}
"""Keys of an entry of metric_list; the others are options of the metric."""
IDLE_OPTIONS = frozenset(
    "ignore_case ignore_punctuation regexes_to_ignore ignore_numbers average k".split()
) | {"weight_by_size"}
"""Options that files give to metrics which do not take them: lm-eval drops them without a word."""

Values = Literal["numbers", "classes", "probabilities", "texts", "weighted"]
"""A metric's value for an item: a number; (right, answered); (right, probabilities); (reference, answer);
(log-likelihood, length)."""


@dataclass(frozen=True, slots=True)
class MetricRule:
    """A metric of lm-eval's registry: ``outputs`` under which it is computed, the ``values`` of its items,
    the ``options`` it takes. ``refused``: why it is not run."""

    outputs: tuple[str, ...] = ()
    values: Values = "numbers"
    options: frozenset[str] = frozenset()
    refused: str = ""


_CHOICE = ("multiple_choice",)
_TEXT = (GENERATE_UNTIL,)
_ROLLING = ("loglikelihood_rolling",)
METRICS: Mapping[str, MetricRule] = {
    "acc": MetricRule(("multiple_choice", "loglikelihood")),
    "acc_norm": MetricRule(_CHOICE),
    "acc_bytes": MetricRule(_CHOICE),
    "acc_mutual_info": MetricRule(refused="choices are not asked a second time without their question"),
    "exact_match": MetricRule(
        (GENERATE_UNTIL, "multiple_choice"),
        options=frozenset("regexes_to_ignore ignore_case ignore_punctuation ignore_numbers".split()),
    ),
    "perplexity": MetricRule(("loglikelihood",)),
    "f1": MetricRule(_CHOICE, "classes"),
    "f1_macro": MetricRule(_CHOICE, "classes"),  # ours
    "mcc": MetricRule(_CHOICE, "classes"),
    "brier_score": MetricRule(_CHOICE, "probabilities"),
    "bleu": MetricRule(_TEXT, "texts"),
    "chrf": MetricRule(_TEXT, "texts"),
    "chrf++": MetricRule(_TEXT, "texts"),
    "ter": MetricRule(_TEXT, "texts"),
    "word_perplexity": MetricRule(_ROLLING, "weighted"),
    "byte_perplexity": MetricRule(_ROLLING, "weighted"),
    "bits_per_byte": MetricRule(_ROLLING, "weighted"),
    "likelihood": MetricRule(_CHOICE, "probabilities"),
    "acc_all": MetricRule(refused="lm-eval computes it for no output type"),
    "bypass": MetricRule(refused="it scores nothing (999 for every task)"),
}

PASSED_ON = METRICS.keys() - {"exact_match", "acc_all", "bypass", "f1_macro"}
"""Metrics whose function returns what it is given: for generate_until the pair (right answer, response), of
which an aggregation of the task's own makes something."""

AGGREGATIONS: Mapping[str, tuple[Values, ...] | str] = {
    **dict.fromkeys(("mean", "median", "nanmean", "perplexity"), ("numbers",)),
    **dict.fromkeys(("f1", "f1_macro", "matthews_corrcoef"), ("classes",)),
    "brier_score": ("probabilities",),
    **dict.fromkeys(("bleu", "chrf", "chrf++", "ter"), ("texts",)),
    **dict.fromkeys(("weighted_perplexity", "bits_per_byte"), ("weighted",)),
    "bypass": "it is 999 for every task",
}
"""Aggregations of lm-eval's registry: the values they take, or why one is refused."""
DEFAULT_AGGREGATIONS: Mapping[str, str] = {
    **dict.fromkeys("acc acc_norm acc_bytes acc_mutual_info exact_match likelihood acc_all".split(), "mean"),
    **dict.fromkeys(
        "perplexity f1 f1_macro brier_score bleu chrf chrf++ ter bits_per_byte bypass".split(), ""
    ),
    "mcc": "matthews_corrcoef",
    "word_perplexity": "weighted_perplexity",
    "byte_perplexity": "weighted_perplexity",
}
"""The aggregation of a metric whose entry names none; empty: the one of the metric's own name."""


@dataclass(frozen=True, slots=True)
class FilterRule:
    """A filter of lm-eval's registry: the ``options`` it takes, those it ``needs``."""

    options: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()


_REGEX = frozenset({"regex_pattern", "group_select", "fallback"})
FILTERS: Mapping[str, FilterRule] = {
    **dict.fromkeys(
        "take_first majority_vote lowercase uppercase remove_whitespace format_span".split(), FilterRule()
    ),
    "take_first_k": FilterRule(frozenset({"k"}), frozenset({"k"})),
    "regex": FilterRule(_REGEX),
    "regex_pos": FilterRule(_REGEX),
    "multi_choice_regex": FilterRule(_REGEX | {"ignore_case", "ignore_punctuation", "regexes_to_ignore"}),
    "map": FilterRule(frozenset({"mapping_dict", "default_value"})),
    "custom": FilterRule(frozenset({"filter_fn"}), frozenset({"filter_fn"})),
}
"""They see one item at a time, which makes no difference to any of these."""

LOADING_KEYS: Mapping[str, Rule] = {
    "trust_remote_code": Rule("no effect", "data-set scripts are never run"),
    "streaming": Rule("no effect", "rows are read whole"),
    "verification_mode": NO_EFFECT,
    "data_files": HONOURED,
    "data_dir": Rule("honoured", "from the hub only"),
    "revision": Rule("refused", "the commit of a dataset stands in the lock file, not in the task file"),
    "features": Rule("refused", "types are those of the rows"),
}
"""Keys of dataset_kwargs that ``datasets.load_dataset`` knows itself; the others are its reader's."""

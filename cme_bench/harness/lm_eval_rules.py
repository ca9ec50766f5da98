"""A task file held against the table of lm-eval's keys: what is not honoured is refused, with its line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeAlias

from cme_bench.harness import lm_eval_table as table
from cme_bench.harness.yaml_loader import FunctionRef
from cme_bench.scoring.generation import GENERATE_UNTIL
from cme_bench.util.errors import did_you_mean

Fail: TypeAlias = Callable[[str, str], NoReturn]
"""Raises UsageError: (key, message)."""
Note: TypeAlias = tuple[str, str]
"""Key and text of something that has no effect, which a user may want to know."""


def check_rules(values: Mapping[str, Any], fail: Fail) -> list[Note]:
    """Check every key of a task file; return what has no effect. UsageError by ``fail`` for the first key
    that is unknown or refused."""
    _check_named("", values, {**table.TASK_KEYS, **table.LOADER_KEYS}, fail)
    output_type = str(values.get("output_type", GENERATE_UNTIL))
    rule = table.OUTPUT_TYPES.get(output_type)
    if rule is None or rule.treatment == "refused":
        known = [name for name, rule in table.OUTPUT_TYPES.items() if rule.treatment == "honoured"]
        reason = f": {rule.why}" if rule else did_you_mean(output_type, known)
        fail("output_type", f"output_type {output_type!r} is none of {', '.join(known)}{reason}")
    _check_repeats(values, fail)
    _check_images(values.get("doc_to_image"), fail)
    if str(values.get("process_results")).endswith("llm_judged"):  # lm-eval's pisa_*_llm_judged
        fail("process_results", "a model of a server judges the answers, and nothing here asks it")
    _check_fewshot(values.get("fewshot_config") or {}, fail)
    if output_type == GENERATE_UNTIL:
        _check_generation(values.get("generation_kwargs") or {}, fail)
    _check_filters(values, fail)
    return [*_check_metrics(values, output_type, fail), *_check_loading(values, fail)]


def _check_named(prefix: str, values: Mapping[str, Any], known: Mapping[str, table.Rule], fail: Fail) -> None:
    """Check that every key is known, and that no refused key says anything."""
    for key, value in values.items():
        if key not in known:
            fail(f"{prefix}{key}", f"unknown key {prefix + str(key)!r}{did_you_mean(str(key), known)}")
        if known[key].treatment == "refused" and value not in (None, False, "", [], {}):
            fail(f"{prefix}{key}", f"{prefix}{key}: {known[key].why}")


def _check_repeats(values: Mapping[str, Any], fail: Fail) -> None:
    repeats = values.get("repeats", 1)
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        fail("repeats", f"'repeats' must be a whole number of 1 or more, not {repeats!r}")


def _check_images(named: Any, fail: Fail) -> None:
    columns = named if isinstance(named, list) and named else [named]
    texts = all(isinstance(column, str) and column.strip() for column in columns)
    if named is not None and not texts and not isinstance(named, FunctionRef):
        key = "doc_to_image"
        fail(key, f"{key!r} must be a column, a list of columns or !function, not {named!r}")


def _check_fewshot(config: Mapping[str, Any], fail: Fail) -> None:
    """Check ``fewshot_config``: its keys, the sampler, exemplars that stand in the file."""
    _check_named("fewshot_config.", config, table.FEWSHOT_KEYS, fail)
    sampler = config.get("sampler", "default")
    if sampler not in table.SAMPLERS:
        hint = did_you_mean(str(sampler), table.SAMPLERS)
        fail("fewshot_config.sampler", f"sampler {sampler!r} is none of {', '.join(table.SAMPLERS)}{hint}")
    samples = config.get("samples")
    if samples is not None and not isinstance(samples, FunctionRef):
        if not isinstance(samples, list) or not all(isinstance(row, Mapping) for row in samples):
            fail(
                "fewshot_config.samples", "'fewshot_config.samples' must be a list of mappings, or !function"
            )
        if not samples:
            fail("fewshot_config.samples", "'fewshot_config.samples' holds no exemplar")
    if config.get("process_docs") is not None and config.get("split") is None:
        key = "fewshot_config.process_docs"
        fail(key, f"'{key}' has no effect in lm-eval without 'fewshot_config.split': give both")


def _check_generation(settings: Mapping[str, Any], fail: Fail) -> None:
    """Check how answers are decoded: stop strings, a limit of one token or more, numbers of sampling."""
    for key in settings:
        if key not in table.GENERATION_KEYS:
            known = ", ".join(table.GENERATION_KEYS)
            hint = did_you_mean(str(key), table.GENERATION_KEYS) or f" (known are {known})"
            fail(f"generation_kwargs.{key}", f"unsupported generation_kwargs: {key}{hint}")
    for key in table.LENGTH_KEYS:
        value = settings.get(key)
        if value is not None and not (str(value).isdecimal() and int(value) > 0):
            fail(f"generation_kwargs.{key}", f"'{key}' must be a whole number of 1 or more, not {value!r}")
    _check_sampling(settings, fail)
    if settings.get("num_beams", 1) != 1:
        fail("generation_kwargs.num_beams", "only greedy generation is supported, no beam search")
    until = settings.get("until")
    texts = until if isinstance(until, list) else [until] if until is not None else []
    if not all(isinstance(text, str) for text in texts):
        fail("generation_kwargs.until", f"'until' must be a text or a list of texts, not {until!r}")
    if "" in texts:
        fail("generation_kwargs.until", "an empty text in 'until' ends every answer in lm-eval: leave it out")


_SAMPLING: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("a number of 0 or more", lambda value: 0 <= value < math.inf),
    "top_p": ("a number above 0, 1 at most", lambda value: 0 < value <= 1),
    "top_k": ("a whole number", lambda value: value == int(value)),
    "min_p": ("a number from 0 to 1", lambda value: 0 <= value <= 1),
}


def _check_sampling(settings: Mapping[str, Any], fail: Fail) -> None:
    sampled = settings.get("do_sample")
    if sampled is not None and not isinstance(sampled, bool):
        fail("generation_kwargs.do_sample", f"'do_sample' must be true or false, not {sampled!r}")
    for key, (kind, fits) in _SAMPLING.items():
        value = settings.get(key)
        try:
            right = value is None or (not isinstance(value, bool) and fits(float(value)))
        except (TypeError, ValueError, OverflowError):
            right = False
        if not right:
            fail(f"generation_kwargs.{key}", f"'{key}' must be {kind}, not {value!r}")


def _check_filters(values: Mapping[str, Any], fail: Fail) -> None:
    """Check ``filter_list``: pipelines of filters that lm-eval registers, or of a task's own code."""
    if values.get("filter_list") == []:
        fail("filter_list", "'filter_list' is empty, so no answer is scored: leave it out")
    for i, pipeline in enumerate(values.get("filter_list") or ()):
        key = f"filter_list.{i}"
        if not isinstance(pipeline, Mapping) or not isinstance(pipeline.get("filter"), list):
            fail(key, "an entry of 'filter_list' has a 'name' and a list of filters, 'filter'")
        if not isinstance(pipeline.get("name"), str) or not pipeline["name"]:
            fail(key, "an entry of 'filter_list' needs a 'name'")
        for extra in pipeline.keys() - {"name", "filter"}:
            fail(f"{key}.{extra}", f"unknown key 'filter_list.{extra}' (an entry has name and filter)")
        for j, step in enumerate(pipeline["filter"]):
            _check_filter(step, f"{key}.filter.{j}", values, fail)


def _check_filter(step: Any, key: str, values: Mapping[str, Any], fail: Fail) -> None:
    if not isinstance(step, Mapping) or "function" not in step:
        fail(key, f"a filter is a mapping with a 'function', not {step!r}")
    name = step["function"]
    if isinstance(name, FunctionRef):
        return
    rule = table.FILTERS.get(str(name))
    if rule is None:
        fail(f"{key}.function", f"unknown filter {name!r}{did_you_mean(str(name), table.FILTERS)}")
    options = step.keys() - {"function"}
    for option in sorted(options - rule.options):
        hint = did_you_mean(option, rule.options)
        fail(f"{key}.{option}", f"filter {name!r} takes no {option!r}{hint}")
    for option in sorted(rule.needs - options):
        fail(key, f"filter {name!r} needs {option!r}")
    if name == "take_first_k" and not (
        isinstance(step["k"], int) and 1 <= step["k"] <= values.get("repeats", 1)
    ):
        fail(
            f"{key}.k",
            f"take_first_k: k is {step['k']!r}, but each item has {values.get('repeats', 1)} answers",
        )
    if name == "custom" and not isinstance(step["filter_fn"], FunctionRef):
        fail(f"{key}.filter_fn", "filter 'custom' needs a !function as 'filter_fn'")


def _check_metrics(values: Mapping[str, Any], output_type: str, fail: Fail) -> Iterator[Note]:
    """Check ``metric_list``: each metric is computed for this output type, with an aggregation that fits
    it."""
    metrics = values.get("metric_list")
    if metrics is None:
        return
    if not (isinstance(metrics, list) and metrics and all(_is_entry(entry) for entry in metrics)):
        fail("metric_list", "'metric_list' must be a list of mappings with a 'metric'")
    from_code = values.get("process_results") is not None
    if from_code and not isinstance(values["process_results"], FunctionRef):
        fail("process_results", "'process_results' must be !function")
    for i, entry in enumerate(metrics):
        key = f"metric_list.{i}"
        higher = entry.get("higher_is_better")
        if higher is not None and not isinstance(higher, bool):
            fail(f"{key}.higher_is_better", f"'higher_is_better' must be true or false, not {higher!r}")
        if from_code:
            _check_own_metric(entry, key, fail)
        else:
            yield from _check_metric(entry, output_type, key, fail)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "metric" in entry


def _check_own_metric(entry: Mapping[str, Any], key: str, fail: Fail) -> None:
    """Check a metric that ``process_results`` computes: its name is the function's, its aggregation is
    known."""
    name = entry["metric"]
    if not isinstance(name, str):
        fail(f"{key}.metric", f"a metric of process_results is named by a text, not {name!r}")
    _check_aggregation(entry, None, key, fail)


def _check_metric(entry: Mapping[str, Any], output_type: str, key: str, fail: Fail) -> Iterator[Note]:
    name = entry["metric"]
    options = entry.keys() - table.METRIC_KEYS.keys()
    if isinstance(name, FunctionRef):
        if output_type != GENERATE_UNTIL:
            fail(f"{key}.metric", f"{name}: lm-eval calls a metric's function for generate_until only")
        _check_aggregation(entry, None, key, fail)
        return
    rule = table.METRICS.get(name) if isinstance(name, str) else None
    if entry.get("hf_evaluate"):
        fail(f"{key}.hf_evaluate", f"metric {name!r}: code of the hub is not run (hf_evaluate)")
    if rule is None:
        fail(f"{key}.metric", f"unknown metric {name!r}{did_you_mean(str(name), table.METRICS)}")
    if rule.refused:
        fail(f"{key}.metric", f"metric {name!r}: {rule.refused}")
    if output_type == GENERATE_UNTIL and name in table.PASSED_ON and _is_code(entry.get("aggregation")):
        return  # the function gets pairs of right answer and response
    if output_type not in rule.outputs:
        fail(f"{key}.metric", f"metric {name!r} is not computed for output_type {output_type!r}")
    for option in sorted(map(str, options - rule.options)):
        if option not in table.IDLE_OPTIONS:
            known = rule.options | table.METRIC_KEYS.keys()
            fail(f"{key}.{option}", f"metric {name!r} takes no {option!r}{did_you_mean(option, known)}")
        yield f"{key}.{option}", f"metric {name!r} takes no {option!r}: it has no effect, as in lm-eval"
    _check_aggregation(entry, rule, key, fail)


def _is_code(value: Any) -> bool:
    return isinstance(value, FunctionRef)


def _check_aggregation(entry: Mapping[str, Any], rule: table.MetricRule | None, key: str, fail: Fail) -> None:
    """Check that the aggregation is lm-eval's or a function, and takes the metric's value of an item."""
    metric = entry["metric"]
    default = table.DEFAULT_AGGREGATIONS.get(metric) if isinstance(metric, str) else None
    name = entry.get("aggregation", metric if default == "" else default)
    if isinstance(name, FunctionRef):
        return
    if not name:
        fail(key, f"metric {str(metric)!r} names no aggregation (mean, median, ..., or !function)")
    known = table.AGGREGATIONS.get(str(name))
    if known is None:
        hint = did_you_mean(str(name), table.AGGREGATIONS)
        fail(f"{key}.aggregation", f"unknown aggregation {name!r}{hint}")
    if isinstance(known, str):
        fail(f"{key}.aggregation", f"aggregation {name!r}: {known}")
    if rule is not None and rule.values not in known:
        fail(
            f"{key}.aggregation",
            f"aggregation {name!r} does not fit metric {metric!r}, whose items give {rule.values}",
        )


def _check_loading(values: Mapping[str, Any], fail: Fail) -> Iterator[Note]:
    """Check ``dataset_kwargs``: a setting that would load other rows than we do is refused."""
    for key, value in (values.get("dataset_kwargs") or {}).items():
        rule = table.LOADING_KEYS.get(key)
        if rule is None:
            continue  # a setting of the reader, which knows its own
        if rule.treatment == "refused" and value is not None:
            fail(f"dataset_kwargs.{key}", f"dataset_kwargs.{key}: {rule.why}")
        if rule.treatment == "no effect" and rule.why and value:
            yield f"dataset_kwargs.{key}", f"{key} has no effect: {rule.why}"
    files = (values.get("dataset_kwargs") or {}).get("data_files")
    if files is not None and not _are_files(files):
        fail(
            "dataset_kwargs.data_files",
            "'data_files' must be a file, a list of files, or a mapping of splits to those",
        )


def _are_files(files: Any) -> bool:
    if isinstance(files, Mapping):
        return bool(files) and all(not isinstance(f, Mapping) and _are_files(f) for f in files.values())
    if isinstance(files, list):
        return bool(files) and all(isinstance(file, str) for file in files)
    return isinstance(files, str)

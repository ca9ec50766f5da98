"""CME's task class for lm-eval: prompts and few-shot are lm-eval's, generated answers are scored by us.

The built-in YAML files name this class (``class: !function cme_bench.tasks.cme_task.CmeTask``), so that stock
``lm_eval --include_path tasks`` scores exactly as ``cme-bench run`` does.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lm_eval import utils
from lm_eval.api.registry import register_aggregation, register_metric
from lm_eval.api.task import ConfigurableTask
from lm_eval.api.utils import maybe_delimit, messages_to_text

from cme_bench.harness.choice_scores import METRICS as QUICK_METRICS
from cme_bench.harness.choice_scores import choice_scores
from cme_bench.harness.compiled_templates import compiled_expression, keep_compiled
from cme_bench.harness.literals import keep_literals_quick
from cme_bench.harness.row_images import RowImages
from cme_bench.images.image import MARK, Image
from cme_bench.images.marks import with_marks
from cme_bench.prompts.alpaca import WRAPPERS
from cme_bench.scoring.generation import METRICS, GoldAnswer, ScoredText, score_text
from cme_bench.scoring.macro_f1 import f1_macro
from cme_bench.scoring.scales import ITEM_SCALES

MOST_ROWS = 2048
"""Rows of a task whose choices and answers are remembered."""
_SCORED_BY = ("choice", "target")
_TURN = ("turn", None)
_EXPRESSION = re.compile(r"\s*\{\{((?:(?!\}\}).)*)\}\}\s*", re.DOTALL)
"""A template that is one expression and nothing else."""

LmEvalTask = ConfigurableTask
"""A task as lm-eval holds it: it renders prompts, filters responses and scores them."""

register_aggregation("f1_macro")(f1_macro)


@register_metric(  # type: ignore[untyped-decorator]  # lm-eval is untyped
    metric="f1_macro", higher_is_better=True, output_type=["multiple_choice"], aggregation="f1_macro"
)
def f1_macro_item(pair: list[int]) -> list[int]:
    """Return one item's (right class, answered class); the aggregation makes macro-F1 of many."""
    return pair


class CmeTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval is untyped
    """A ConfigurableTask that renders exemplars once, with three additions, all declared in ``metadata``:

    ``answer: {type: label|letter|short|summary|number|math|first_choice|last_number, options: TEMPLATE,
    decimal: point|comma}``: how a response is read and scored (:mod:`cme_bench.scoring.generation`); without
    it lm-eval's metrics apply, and ``f1_macro``.
    ``fewshot_group: FIELD``: exemplars come from rows with the same value of that field (MMLU's subjects).
    ``format: alpaca|llm-adapters``: the prompt around the question, unless a chat template is applied.
    """

    _last: tuple[Any, dict[tuple[str, str | None], Any]] = (None, {})
    """A row, and what was rendered of it."""
    _exemplars: Mapping[int, dict[tuple[str, str | None], Any]] = MappingProxyType({})
    """The rendered texts of every few-shot row, by the row's ``id``: the sampler holds them all."""

    def __init__(self, config: dict[str, Any] | None = None, **kwargs: Any) -> None:
        keep_compiled()
        keep_literals_quick()
        config = {key: value for key, value in (config or {}).items() if key != "class"}
        self.row_images: RowImages | None = config.pop("row_images", None)
        self.shot_images: RowImages | None = config.pop("shot_images", self.row_images)
        self.shown: Sequence[dict[str, Any]] = ()
        metadata: dict[str, Any] = config.get("metadata") or {}
        self.answer: dict[str, Any] | None = metadata.get("answer")
        if self.answer is not None:
            # lm-eval looks up no metric by name where process_results is set; ours is the method below
            config["process_results"] = "cme_bench"
            config["metric_list"] = [
                {
                    "metric": name,
                    "aggregation": "f1_macro" if name == "f1_macro" else "mean",
                    "higher_is_better": name not in ITEM_SCALES or ITEM_SCALES[name][1] != "lower",
                }
                for name in (*METRICS[self.answer["type"]], "answered")
            ]
        self._rows: dict[int, tuple[Any, dict[tuple[str, str | None], Any]]] = {}
        super().__init__(config=config, **kwargs)
        self._quick = self._scored_here()
        if hasattr(self, "sampler"):
            self._exemplars = {id(row): {} for row in self.sampler.fewshot_docs()}
        self._wrapper = WRAPPERS.get(str(metadata.get("format")))
        self._group_field: str | None = metadata.get("fewshot_group")
        self._groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        if self._group_field and hasattr(self, "sampler"):
            for row in self.sampler.fewshot_docs():
                self._groups[row[self._group_field]].append(row)

    def fewshot_docs(self) -> Any:
        """Return the rows that exemplars come from; None where rows are given and no exemplar is shown, since
        lm-eval would make a list of all of them."""
        if self.config.custom_dataset is not None and not self.config.num_fewshot:
            return None
        return super().fewshot_docs()

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, *args: Any, **kwargs: Any) -> Any:
        self.shown = ()  # until exemplars are drawn
        if self._wrapper is not None and not kwargs.get("apply_chat_template"):
            chat = {"apply_chat_template": True, "chat_template": self._wrapper}
            kwargs |= {"fewshot_as_multiturn": True, **chat}
        if self._group_field and num_fewshot:
            self.sampler.replace_df(self._groups[doc[self._group_field]])
        if args or kwargs.get("apply_chat_template") or not (num_fewshot and self._exemplars):
            return super().fewshot_context(doc, num_fewshot, *args, **kwargs)
        return self._joined(doc, num_fewshot, **kwargs)

    def _joined(self, doc: dict[str, Any], num_fewshot: int, **kwargs: Any) -> Any:
        """Return what lm-eval's ``fewshot_context`` does of a plain text: each exemplar's is made once."""
        bare = super().fewshot_context(doc, 0, **kwargs)
        description = self.resolve_field(doc, self.config.description) or ""
        given = kwargs.get("system_instruction")
        head = maybe_delimit(given, description, self.config.fewshot_delimiter)
        own = doc if self.fewshot_cfg.split == self.config.test_split else None
        before = head + "".join(map(self._turn, self.sampler.sample(n=num_fewshot, eval_doc=own)))
        if isinstance(bare, list):
            return [before + text[len(head) :] for text in bare]
        return before + bare[len(head) :]

    def _turn(self, row: Any) -> str:
        """Return an exemplar with its answer, as it stands in a plain prompt."""
        known = self._exemplars.get(id(row), {})
        if _TURN not in known:
            config = self.fewshot_cfg
            question = self.doc_to_text(row, config.doc_to_text)
            choices: Any = self.doc_to_choice(row, config.doc_to_choice) if config.doc_to_choice else None
            known[_TURN] = messages_to_text(
                self.build_qa_turn(
                    q=choices[question] if self.multiple_input else question,
                    c=None if self.multiple_input else choices,
                    a=self.doc_to_target(row, config.doc_to_target),
                    gen_prefix=self.resolve_field(row, config.gen_prefix),
                    tgt_delim=config.target_delimiter,
                    few_delim=config.fewshot_delimiter,
                )
            )
        return str(known[_TURN])

    def doc_to_text(self, doc: Any, doc_to_text: Any = None) -> Any:
        text = self._rendered("text", doc, doc_to_text, super().doc_to_text)
        if self.row_images is None or not isinstance(text, str) or MARK in str(self.config.description):
            return text
        return with_marks(text, len(self.images_of(doc)))

    def images_of(self, doc: dict[str, Any]) -> tuple[Image, ...]:
        """Return the images of one row, or of one exemplar. ImageError if one cannot be read."""
        images = self.shot_images if id(doc) in self._exemplars else self.row_images
        if images is None:
            return ()
        found: tuple[Image, ...] = self._rendered("images", doc, None, lambda row, _: images.of(row))
        return found

    def recorded(self, doc: dict[str, Any]) -> dict[str, Any]:
        """Return a row as it is stored: without the contents of its images."""
        return doc if self.row_images is None else self.row_images.recorded(doc)

    def prompt_images(self, doc: dict[str, Any]) -> tuple[Image, ...]:
        """Return the images of the prompt that was rendered last, of ``doc``: its exemplars' and its own."""
        return tuple(image for row in (*self.shown, doc) for image in self.images_of(row))

    def doc_to_target(self, doc: Any, doc_to_target: Any = None) -> Any:
        target = self._rendered("target", doc, doc_to_target, super().doc_to_target)
        if self.answer is None or not isinstance(target, list):  # lm-eval's own metrics get what it reads
            return target
        template = self.config.doc_to_target if doc_to_target is None else doc_to_target
        return self._as_written(doc, template, target)

    def doc_to_choice(self, doc: Any, doc_to_choice: Any = None) -> Any:
        return self._rendered("choice", doc, doc_to_choice, super().doc_to_choice)

    def _rendered(self, field: str, doc: Any, template: Any, render: Callable[[Any, Any], Any]) -> Any:
        """Return ``render(doc, template)``; an exemplar is rendered once and remembered.

        So is the row that was asked for last: its question, choices and answer are needed several times.
        Choices and answers are remembered longer: items are scored after all were rendered.
        """
        if not (template is None or isinstance(template, str)):
            return render(doc, template)
        known = self._exemplars.get(id(doc))
        if known is None:
            known = self._scored(doc) if field in _SCORED_BY else self._asked(doc)
        key = field, template
        if key not in known:
            known[key] = render(doc, template)
        return known[key]

    def _asked(self, doc: Any) -> dict[tuple[str, str | None], Any]:
        """Return what is known of the row that was asked for last."""
        if self._last[0] is not doc:
            self._last = doc, {}
        return self._last[1]

    def _scored(self, doc: Any) -> dict[tuple[str, str | None], Any]:
        """Return what is known of a row, which is kept with it, so that its ``id`` stays its own."""
        row, known = self._rows.get(id(doc), (None, {}))
        if row is not doc:
            known = {}
            self._rows[id(doc)] = doc, known
            if len(self._rows) > MOST_ROWS:
                del self._rows[next(iter(self._rows))]
        return known

    def _as_written(self, doc: dict[str, Any], template: Any, target: list[Any]) -> Any:
        """Return a text that only looks like a list ("[1, 2]", as of code) as the text it is.

        lm-eval evaluates whatever a template renders in brackets; several answers are a list in the row, for
        an answer that is scored here.
        """
        expression = _EXPRESSION.fullmatch(template) if isinstance(template, str) else None
        if expression is None or template in self.features:
            return target
        value = compiled_expression(expression.group(1))(**doc)
        return value if isinstance(value, str) else target

    def gold_answer(self, doc: dict[str, Any]) -> GoldAnswer:
        """Return the right answer of one row, as ``metadata.answer`` declares it."""
        assert self.answer is not None
        kind = self.answer["type"]
        target = self.doc_to_target(doc)
        if kind in ("label", "letter", "first_choice"):
            choices = self.doc_to_choice(doc)
            options: Sequence[str] = ()
            if template := self.answer.get("options"):
                options = [str(o) for o in ast.literal_eval(utils.apply_template(template, doc))]
            return GoldAnswer(kind, choices, int(target), options)
        references = [str(t) for t in target] if isinstance(target, list) else [str(target)]
        return GoldAnswer(kind, references=references, decimal=self.answer.get("decimal"))

    def score_text(self, doc: dict[str, Any], response: str) -> ScoredText:
        """Return the extraction and metrics of one generated response."""
        return score_text(response, self.gold_answer(doc))

    def process_results(self, doc: dict[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        if self.answer is None:
            scores = self._choice_scores(doc, results) if self._quick else None
            if scores is None:
                scores = dict(super().process_results(doc, results))
            if "f1_macro" in self._metric_fn_list:
                logprobs = [logprob for logprob, _ in results]
                scores["f1_macro"] = [self.doc_to_target(doc), logprobs.index(max(logprobs))]
            return scores
        return self.score_text(doc, results[0]).scores

    def _scored_here(self) -> bool:
        """Return whether lm-eval's own metrics of its choices are all that scores an item."""
        named = self._metric_fn_list.keys() - {"f1_macro"}
        own = callable(self.config.process_results) or self.multiple_target
        return self.OUTPUT_TYPE == "multiple_choice" and not own and named <= QUICK_METRICS

    def _choice_scores(self, doc: dict[str, Any], results: Sequence[Any]) -> dict[str, Any] | None:
        """Return what lm-eval's ``process_results`` does, as far as ``choice_scores`` has it."""
        gold = self.doc_to_text(doc) if self.multiple_input else self.doc_to_target(doc)
        logprobs = [logprob for logprob, _ in results]
        return choice_scores(self._metric_fn_list, logprobs, self.doc_to_choice(doc), gold)

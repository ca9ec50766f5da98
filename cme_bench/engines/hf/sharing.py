"""The test whether a model can share prefixes: what it declares, and a small trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cme_bench.engines.hf.attention_hook import UnsupportedAttentionError
from cme_bench.engines.hf.forward import CausalForward, base_model
from cme_bench.engines.hf.loglikelihood import RowScore, ScoringRow, score_by_length
from cme_bench.engines.hf.pack_forward import PackForward, finished_rows
from cme_bench.engines.hf.trials import MODEL_ERRORS, agree, fail_without_memory, trial_ids
from cme_bench.engines.logits import LogitsError
from cme_bench.engines.plan import PlanLimits, pack_sequences, plan_packs
from cme_bench.util.errors import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
_TRIAL_LENGTH = 20


def why_rowwise(forward: CausalForward, max_length: int) -> str | None:
    """Return why rows of this model must be computed one by one; None if they can share prefixes."""
    return _declared(forward) or _tried(forward, max_length)


def _declared(forward: CausalForward) -> str | None:
    model: PreTrainedModel = forward.model
    config = base_model(model).config.get_text_config(decoder=True)
    if not forward.takes_positions:
        return "the model takes no position ids"
    if others := set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES:
        return f"the model has layers of type {', '.join(sorted(map(str, others)))}"
    if kinds := _rope_types(config) & _LENGTH_DEPENDENT_ROPE:
        return f"rotary positions of type {', '.join(sorted(kinds))} depend on the row's length"
    return None


def _rope_types(config: Any) -> set[str]:
    kinds = set()
    todo = [getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)]
    while todo:
        settings = todo.pop()
        if isinstance(settings, dict):
            kinds.add(str(settings.get("rope_type", settings.get("type"))))
            todo += settings.values()
    return kinds


def _tried(forward: CausalForward, max_length: int) -> str | None:
    """Score a few short rows both ways; return why they tell against sharing, or None."""
    if max_length < _TRIAL_LENGTH:
        return f"rows have fewer than {_TRIAL_LENGTH} tokens"
    try:
        return _told_apart(forward, max_length)
    except LogitsError:  # a row of the run that has such logits is named with its item
        return "a trial gave logits that are no numbers"


def _told_apart(forward: CausalForward, max_length: int) -> str | None:
    ids = trial_ids(forward)
    head, middle = ids[:6], ids[6:10]
    rows = [
        ScoringRow(head + middle, ids[10:11], [(0, 0)]),
        ScoringRow(head + middle + ids[11:14], ids[14:17], [(0, 1)]),
        ScoringRow(head + middle + ids[17:19], ids[19:23], [(0, 2)]),
        ScoringRow(head + ids[23:31], ids[31:33], [(0, 3)]),  # as long as the two before it
    ]
    alone = score_by_length(forward, rows)  # what fails here is no matter of sharing
    try:
        shared = shared_scores(forward, rows, max_length)
    except UnsupportedAttentionError as err:
        return str(err)
    except MODEL_ERRORS as err:
        fail_without_memory(err)
        return f"a trial failed ({type(err).__name__}: {first_line(err)})"
    if not all(agree(shared[i], score, len(rows[i].continuation), forward) for i, score in enumerate(alone)):
        return "a trial gave other scores"
    return None


def shared_scores(
    forward: CausalForward,
    rows: Sequence[ScoringRow],
    max_length: int,
    *,
    chunk: int = 12,
    scored: int = 12,
) -> dict[int, RowScore]:
    """Return the scores of a few rows by packs of ``chunk`` tokens, ``scored`` of them read, at most, by
    their choice's number. Forwards are twice as large, so that some have several packs.

    Raises UnsupportedAttentionError where a layer does not attend by transformers' interface.
    """
    limits = PlanLimits(
        pack_tokens=chunk, pack_scored=scored, block_tokens=4, forward_tokens=1, kept_tokens=max_length
    )
    run = PackForward(forward)
    planned = plan_packs([(row.context, row.continuation) for row in rows], limits)
    packs = pack_sequences(planned, replace(limits, pack_tokens=2 * chunk))
    scores = {row.owners[0][1]: score for row, score in finished_rows(rows, (run(pack)() for pack in packs))}
    if run.windows != windows(base_model(forward.model).config.get_text_config(decoder=True)):
        raise UnsupportedAttentionError(
            "its attention does not go through transformers' interface in every layer"
        )
    return scores


def windows(config: Any) -> list[int | None]:
    """Return the window of every layer, as the config has it."""
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]

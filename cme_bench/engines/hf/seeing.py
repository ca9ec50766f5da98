"""The test whether images may stand in the place of their virtual ids: what a model declares, and a trial."""

from __future__ import annotations

from typing import Any

from cme_bench.engines.hf.attention_hook import UnsupportedAttentionError
from cme_bench.engines.hf.forward import CausalForward
from cme_bench.engines.hf.images import Images
from cme_bench.engines.hf.loglikelihood import RowScore, ScoringRow, score_rows, score_seen
from cme_bench.engines.hf.sharing import shared_scores
from cme_bench.engines.hf.trials import MODEL_ERRORS, agree, fail_without_memory, trial_ids
from cme_bench.engines.logits import LogitsError
from cme_bench.util.errors import CmeError, first_line

_TEXT_TOKENS = 18
"""Tokens of the longest row of the trial beside its image."""


def why_seen_alone(forward: CausalForward, images: Images, max_length: int, *, shares: bool) -> str | None:
    """Return why rows with images go through the model's own forward, from pixels; None if they need not.

    ``shares``: whether prefixes of text are shared. One of the images in work is tried.
    """
    return _declared(images.base, images) or _tried(forward, images, max_length, shares=shares)


def _declared(base: Any, images: Images) -> str | None:
    if images.types:
        return f"the model is told by {images.types[0]} which tokens are an image's"
    text = base.config.get_text_config(decoder=True)
    if getattr(text, "use_bidirectional_attention", None):
        return "the tokens of an image see each other"
    if "mrope_section" in (getattr(text, "rope_parameters", None) or {}):
        return "positions depend on the sizes of images"
    return None


def _tried(forward: CausalForward, images: Images, max_length: int, *, shares: bool) -> str | None:
    """Score a few rows both ways; return why they tell against the place of virtual ids, or None."""
    image = images.first
    assert image is not None
    seen = images.ids(image)
    if max_length < len(seen) + _TEXT_TOKENS:
        return "a row has no room for an image and a few tokens"
    ids = trial_ids(forward)
    head = ids[:4] + seen
    rows = [
        ScoringRow(head + ids[4:8], ids[10:12], [(0, 0)]),
        ScoringRow(head + ids[4:6] + ids[20:24], ids[24:27], [(0, 1)]),
        ScoringRow(ids[:4] + ids[12:17], ids[17:19], [(0, 2)]),
    ]
    alone = [score_seen(forward, row) for row in rows]  # what fails here is no matter of sharing
    try:
        ways = [dict(enumerate(score_rows(forward, [row])[0] for row in rows))]
        if shares:
            ways.append(shared_scores(forward, rows, max_length, chunk=12 + len(seen)))
    except LogitsError:
        return "a trial gave logits that are no numbers"
    except (CmeError, UnsupportedAttentionError, *MODEL_ERRORS) as err:
        fail_without_memory(err)
        return f"a trial failed ({type(err).__name__}: {first_line(err)})"
    if all(_agree(way, alone, rows, forward) for way in ways):
        return None
    return "a trial gave other scores"


def _agree(
    way: dict[int, RowScore], alone: list[RowScore], rows: list[ScoringRow], forward: CausalForward
) -> bool:
    return all(agree(way[i], score, len(rows[i].continuation), forward) for i, score in enumerate(alone))

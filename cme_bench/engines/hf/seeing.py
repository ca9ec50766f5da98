"""The test whether images may stand in the place of their virtual ids: what a model declares, and a trial."""

from __future__ import annotations

from typing import Any

from cme_bench.engines.hf.attention_hook import UnsupportedAttentionError
from cme_bench.engines.hf.forward import CausalForward
from cme_bench.engines.hf.images import Images
from cme_bench.engines.hf.loglikelihood import ScoringRow, score_rows, score_seen
from cme_bench.engines.hf.sharing import shared_scores
from cme_bench.engines.hf.trials import MODEL_ERRORS, agree, fail_without_memory, trial_ids
from cme_bench.engines.logits import LogitsError
from cme_bench.util.errors import CmeError, first_line

_TEXT_TOKENS = 9
"""Tokens of the trial's row beside its image."""


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
    """Score a row both ways; return why that tells against the place of virtual ids, or None.

    Where prefixes are shared, the image is one that is computed first and kept: rows of text told already
    whether that changes scores, and another row with an image would take as long as many questions.
    """
    image = images.first
    assert image is not None
    seen = images.ids(image)
    if max_length < len(seen) + _TEXT_TOKENS:
        return "a row has no room for an image and a few tokens"
    ids = trial_ids(forward)
    row = ScoringRow(ids[:4] + seen + ids[4:6], ids[6:9], [(0, 0)])
    alone = score_seen(forward, row)  # what fails here is no matter of sharing
    try:
        if shares:
            chunk = 4 + len(seen)
            [found] = shared_scores(forward, [row], max_length, chunk=chunk, scored=chunk).values()
        else:
            [found] = score_rows(forward, [row])
    except LogitsError:
        return "a trial gave logits that are no numbers"
    except (CmeError, UnsupportedAttentionError, *MODEL_ERRORS) as err:
        fail_without_memory(err)
        return f"a trial failed ({type(err).__name__}: {first_line(err)})"
    return None if agree(found, alone, len(row.continuation), forward) else "a trial gave other scores"

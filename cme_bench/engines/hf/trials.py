"""Small trials of a model's own code: whether it can be trusted with padding on the left, and with a cache.

Some models ignore the mask of padding (RWKV, xLSTM, decoders of encoder-decoders), some have no cache or one
of their own kind (Mamba, OpenAI GPT). Rows of one length, and every prefix computed again, are always right.
"""

from __future__ import annotations

import torch

from cme_bench.engines.hf.batching import is_out_of_memory
from cme_bench.engines.hf.forward import CausalForward, base_model, max_positions
from cme_bench.engines.hf.loglikelihood import RowScore, ScoringRow, score_rows
from cme_bench.engines.logits import LogitsError
from cme_bench.util.errors import CmeError

MODEL_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError)
"""Errors of a model's code where it cannot do what it is asked."""
_TRIAL_LENGTH = 20
_PRECISE, _COARSE, _COARSE_UNPLACED = 1e-3, 0.5, 0.1
"""Most difference of a token's log-probability: float32; 16 bits; 16 bits, of a model without positions."""


def trial_ids(forward: CausalForward) -> tuple[int, ...]:
    """Return 40 token ids that the model has."""
    vocabulary = base_model(forward.model).get_input_embeddings().weight.shape[0]
    return tuple((7 * i + 3) % min(vocabulary, 997) for i in range(40))


def agree(one: RowScore, other: RowScore, tokens: int, forward: CausalForward) -> bool:
    """Tell whether two scores of a row of so many scored tokens are the same but for rounding."""
    precise = base_model(forward.model).dtype in {torch.float32, torch.float64}
    coarse = _COARSE if forward.takes_positions else _COARSE_UNPLACED
    return abs(one.logprob - other.logprob) <= tokens * (_PRECISE if precise else coarse)


def fail_without_memory(err: Exception) -> None:
    """Raise CmeError if ``err`` says that memory ran out, which no other way of computing mends."""
    if isinstance(err, RuntimeError) and is_out_of_memory(err):
        raise CmeError("out of memory on a few short rows: use a smaller model or dtype") from err


def pads(forward: CausalForward) -> bool:
    """Return whether rows of several lengths have the scores in one batch that they have alone."""
    if max_positions(base_model(forward.model).config) < _TRIAL_LENGTH:
        return False
    ids = trial_ids(forward)
    rows = [ScoringRow(ids[:n], ids[n : n + 2], [(0, i)]) for i, n in enumerate((18, 11, 3))]
    alone = [score_rows(forward, [row])[0] for row in rows]  # what fails here is no matter of padding
    try:
        together = score_rows(forward, rows)
    except (LogitsError, *MODEL_ERRORS) as err:
        fail_without_memory(err)
        return False
    return all(agree(one, other, 2, forward) for one, other in zip(alone, together, strict=True))


@torch.inference_mode()
def caches(forward: CausalForward) -> bool:
    """Return whether a token fed after a cache has the logits that it has in the whole row."""
    if max_positions(base_model(forward.model).config) < _TRIAL_LENGTH:
        return False
    ids = torch.tensor([trial_ids(forward)[:12]], device=forward.device)
    mask = torch.ones_like(ids)
    whole, _ = forward(ids, mask, keep=1)
    try:
        _, cache = forward(ids[:, :-2], mask[:, :-2], keep=1, use_cache=True)
        _, cache = forward(ids[:, -2:-1], mask[:, :-1], keep=1, cache=cache, use_cache=True)
        after, _ = forward(ids[:, -1:], mask, keep=1, cache=cache, use_cache=True)
    except MODEL_ERRORS as err:
        fail_without_memory(err)
        return False
    if cache is None:
        return False
    scores = [logits[0, -1].float().log_softmax(-1) for logits in (whole, after)]
    best = int(scores[0].argmax())
    return agree(RowScore(float(scores[0][best]), True), RowScore(float(scores[1][best]), True), 1, forward)

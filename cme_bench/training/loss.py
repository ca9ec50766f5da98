"""The loss on target tokens only, without ever holding the logits of a whole batch.

A vocabulary-wide row of fp32 logits for every position is most of a training step's memory. Only target rows
need logits, and a frozen output layer lets each chunk of rows go from logits to gradient at once, in the
forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from cme_bench.training.batches import IGNORED
from cme_bench.training.varlen import VARLEN
from cme_bench.util.errors import UsageError
from cme_bench.util.exact_logits import exact_logits

CHUNK_NUMBERS = 1 << 25
"""Logits held at one time (fp32: 128 MB), so that rows of a large vocabulary come in small chunks."""

Head = Callable[[Tensor], Tensor]


@dataclass
class TargetLoss(ModelOutput):  # type: ignore[misc]  # transformers carries no types here
    """``loss``: what is differentiated; ``nll``: summed negative log-likelihood of the targets, detached."""

    loss: Tensor | None = None
    nll: Tensor | None = None


def target_nll(hidden: Tensor, labels: Tensor, head: Head, *, chunk: int, frozen_head: bool = True) -> Tensor:
    """Return the summed negative log-likelihood of the labelled tokens, a float32 scalar.

    Args:
        hidden: [rows, length, width], the decoder's output; place t predicts the token at t + 1.
        labels: [rows, length], ``IGNORED`` where nothing is learnt.
        head: Maps [n, width] to logits [n, vocabulary].
        chunk: Most rows of logits at one time.
        frozen_head: Nothing in ``head`` is trained, so each chunk's gradient is taken at once; otherwise
            chunks are computed a second time in the backward pass.
    """
    labels = labels.to(hidden.device)  # where the last layer is, of a model on several
    if frozen_head:
        return target_nlls(hidden, labels, head, chunk=chunk)[0].sum()
    learnt = labels[:, 1:] != IGNORED
    rows, targets = hidden[:, :-1][learnt], labels[:, 1:][learnt]
    total = torch.zeros((), device=hidden.device)
    for start in range(0, len(targets), chunk):
        piece = slice(start, start + chunk)
        nlls = checkpoint(_nlls, rows[piece], targets[piece], head, use_reentrant=False)
        total = total + nlls.sum()
    return total


def target_nlls(hidden: Tensor, labels: Tensor, head: Head, *, chunk: int) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of every labelled token, float32 [n], and the row of each, [n].

    Arguments as for :func:`target_nll`; nothing in ``head`` is trained.
    """
    labels = labels.to(hidden.device)
    learnt = labels[:, 1:] != IGNORED
    rows, targets = hidden[:, :-1][learnt], labels[:, 1:][learnt]
    nlls: Tensor = _ChunkedNlls.apply(rows, targets, head, chunk)  # type: ignore[no-untyped-call]
    return nlls, learnt.nonzero()[:, 0]


def placed_nlls(hidden: Tensor, places: Tensor, targets: Tensor, head: Head, *, chunk: int) -> Tensor:
    """Return the negative log-likelihood of every target, float32 in the shape of ``targets``.

    Each is predicted at its place of the flattened ``hidden``; the value is 0 for those that are ``IGNORED``.
    Shapes are known before, so a GPU waits for none. Nothing in ``head`` is trained.
    """
    rows = hidden.flatten(0, 1)[places.to(hidden.device).flatten()]
    wanted = targets.to(hidden.device).flatten()
    nlls: Tensor = _ChunkedNlls.apply(rows, wanted, head, chunk)  # type: ignore[no-untyped-call]
    return nlls.view_as(targets)


def _nlls(rows: Tensor, targets: Tensor, head: Head) -> Tensor:
    return nn.functional.cross_entropy(head(rows).float(), targets, reduction="none")


class _ChunkedNlls(torch.autograd.Function):
    """Forward computes values and gradients, chunk by chunk; backward only scales each row's gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, targets: Tensor, head: Head, chunk: int) -> Tensor:
        values = torch.zeros(len(targets), device=rows.device)
        wanted = ctx.needs_input_grad[0]
        grad = torch.empty_like(rows) if wanted else None
        for start in range(0, len(targets), chunk):
            piece = slice(start, start + chunk)
            part = rows[piece].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                nlls = _nlls(part, targets[piece], head)
                if grad is not None:
                    (grad[piece],) = torch.autograd.grad(nlls.sum(), part)
            values[piece] = nlls.detach()
        ctx.save_for_backward(grad)
        return values

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, None, None, None]:
        (grad,) = ctx.saved_tensors
        return None if grad is None else grad * outer[:, None].to(grad.dtype), None, None, None


def output_head(model: nn.Module) -> Head:
    """Return a function from hidden states to float32 logits, as the model's own forward computes them:
    soft-capping and scaling included.

    Raises UsageError if the model's own logits differ: an architecture that treats them in an unknown way.
    """
    linear = model.get_output_embeddings()  # type: ignore[operator]
    config: Any = model.config
    cap = getattr(config, "final_logit_softcapping", None)
    factor = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)

    def head(rows: Tensor) -> Tensor:
        with exact_logits(model):
            logits: Tensor = linear(rows)
        logits = logits * factor if factor != 1.0 else logits
        return torch.tanh(logits / cap) * cap if cap else logits

    _check_head(model, head)
    return head


@torch.no_grad()
def _check_head(model: nn.Module, head: Head) -> None:
    training = model.training
    model.eval()
    ids = torch.arange(4, device=next(model.parameters()).device)[None]
    try:
        with exact_logits(model):
            own = model(input_ids=ids, use_cache=False).logits
        ours = head(_decoder(model)(input_ids=ids, use_cache=False).last_hidden_state)
    finally:
        model.train(training)
    if not torch.allclose(own.float(), ours.float(), rtol=1e-3, atol=1e-3):
        raise UsageError(
            f"{type(model).__name__} changes its logits in a way that cme-bench train does not know"
        )


def _decoder(model: nn.Module) -> nn.Module:
    decoder: nn.Module = model.base_model  # type: ignore[assignment]  # transformers: the model below the head
    return decoder


@contextmanager
def target_loss(model: nn.Module) -> Iterator[None]:
    """Make the causal LM's forward return a ``TargetLoss`` instead of logits, for the block.

    ``forward(input_ids, attention_mask, labels, weight, position_ids)``: ``loss`` is ``weight`` times the
    summed negative log-likelihood. ``position_ids`` are those of packed rows: the decoder then finds the
    examples by them, and gets no mask, with which it would not look. Packs of known shape name their
    ``places`` and ``targets``, which say what ``labels`` do, and their ``starts``, for an attention that goes
    by them (:mod:`cme_bench.training.varlen`). ``model`` is the transformers model
    itself, below any adapter wrapper, which then passes through (DataParallel wrappers, autocast and
    AdaLoRA's regulariser included).
    """
    head = output_head(model)
    decoder = _decoder(model)
    linear = model.get_output_embeddings()  # type: ignore[operator]
    config: Any = model.config
    chunk = max(1, CHUNK_NUMBERS // int(linear.weight.shape[0]))

    def forward(
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        weight: Tensor | float = 1.0,
        position_ids: Tensor | None = None,
        *,
        places: Tensor | None = None,
        targets: Tensor | None = None,
        starts: Tensor | None = None,
        **_: Any,
    ) -> TargetLoss:
        seen = {"attention_mask": attention_mask} if position_ids is None else {"position_ids": position_ids}
        if starts is not None and config._attn_implementation == VARLEN:
            seen["starts"] = starts
        hidden = decoder(input_ids=input_ids, use_cache=False, **seen).last_hidden_state
        frozen = not any(p.requires_grad for p in linear.parameters())
        if places is not None and targets is not None and frozen:
            nll = placed_nlls(hidden, places, targets, head, chunk=chunk).sum()
        else:
            nll = target_nll(hidden, labels, head, chunk=chunk, frozen_head=frozen)
        weight = weight.to(nll.device) if isinstance(weight, Tensor) else weight
        return TargetLoss(loss=nll * weight, nll=nll.detach())

    forward.of_training = True  # type: ignore[attr-defined]  # an evaluation meanwhile takes it away
    before = model.__dict__.get("forward")  # accelerate's, of a model on several devices
    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        if before is not None:
            model.forward = before

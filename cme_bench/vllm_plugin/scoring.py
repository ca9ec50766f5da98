"""Log-probabilities of the last tokens of prompts, for all requests of a step at once.

vLLM's own runner scores one prompt after the other, each from its first token that was not cached: logits of
every such place over the vocabulary, a dozen kernels and three copies a request. A choice's tokens are the
last few of its prompt; here those of all requests of a step share a product and a copy, and no other place
is scored. The values are the runner's own: the same logits and ``compute_logprobs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

SCORED = "cme_bench_scored"
"""Key in ``SamplingParams.extra_args``: how many of the prompt's last tokens to score. The request's
``prompt_logprobs``, which must be 0, then end with those and hold nothing else of use."""
METHOD = "_get_prompt_logprobs_dict"
"""Of vLLM's runner, which this takes the place of."""
CPU_CHUNK, GPU_CHUNK = 1 << 24, 1 << 27
"""Bytes of float32 logits that are held at a time. On a CPU pieces of 16 MiB take half as long as of 128."""


@torch.inference_mode()
def prompt_logprobs(
    runner: Any, own: Any, hidden_states: torch.Tensor, num_scheduled_tokens: Mapping[str, int]
) -> dict[str, Any]:
    """Score as ``own``, the runner's method, where every request says how much it wants scored; else ask
    ``own`` itself. (Requests of both kinds must not be in work at once.)

    Args:
        hidden_states: ``(places of the step, hidden size)``.
        num_scheduled_tokens: of each request of the step.
    """
    from vllm.v1.outputs import LogprobsTensors

    asked: dict[str, int] = runner.num_prompt_logprobs
    scored = {name: _scored(runner.requests[name]) for name in asked if name in num_scheduled_tokens}
    if not all(scored.values()):
        found: dict[str, Any] = own(hidden_states, num_scheduled_tokens)
        return found
    done: dict[str, Any] = {}
    rows: list[int] = []
    targets: list[int] = []
    parts: list[tuple[Any, slice]] = []
    for name, count in scored.items():
        assert count is not None
        request = runner.requests[name]
        tensors = request.in_progress_prompt_logprobs_cpu
        if tensors is None:
            tensors = request.in_progress_prompt_logprobs_cpu = LogprobsTensors.empty_cpu(count, 1)
        prompt = request.prompt_token_ids
        start = request.num_computed_tokens
        end = start + num_scheduled_tokens[name]
        first = len(prompt) - count
        # A place's logits score the token after it.
        low, high = max(first, start + 1), min(len(prompt), end + 1)
        if low < high:
            offset = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[name]]) - start - 1
            rows.extend(range(offset + low, offset + high))
            targets.extend(prompt[low:high])
            parts.append((tensors, slice(low - first, high - first)))
        if end >= len(prompt):
            done[name] = tensors
            request.in_progress_prompt_logprobs_cpu = None
            del asked[name]
    if rows:
        _fill(parts, _gathered(runner, hidden_states, rows, targets))
    return done


def _scored(request: Any) -> int | None:
    """Return the number of tokens of its prompt that a request wants scored; None if it does not say so in
    our way."""
    extra = request.sampling_params.extra_args if request.sampling_params else None
    count: int | None = (extra or {}).get(SCORED)
    return count if request.prompt_token_ids is not None else None


def _gathered(
    runner: Any, hidden_states: torch.Tensor, rows: list[int], targets: list[int]
) -> list[torch.Tensor]:
    """Return the token ids, log-probabilities and ranks of ``targets`` after the places ``rows``, on the CPU.

    The rank is 1 of the token that greedy decoding takes, the first of equals, and 2 of any other.
    """
    device = hidden_states.device
    places = torch.tensor(rows).to(device, non_blocking=True)
    tokens = torch.tensor(targets).to(device, non_blocking=True)
    chunk = CPU_CHUNK if device.type == "cpu" else GPU_CHUNK
    at_once = max(1, chunk // (4 * runner.model_config.get_vocab_size()))
    chunks = []
    for begin in range(0, len(rows), at_once):
        part = slice(begin, begin + at_once)
        logits = runner.model.compute_logits(hidden_states[places[part]])
        scores = runner.sampler.compute_logprobs(logits)
        asked = tokens[part, None]
        chunks.append((asked, scores.gather(-1, asked), 2 - (logits.argmax(-1) == tokens[part]).int()))
    return [torch.cat(parts).cpu() for parts in zip(*chunks, strict=True)]


def _fill(parts: list[tuple[Any, slice]], found: list[torch.Tensor]) -> None:
    """Give each request its part, in order."""
    begin = 0
    for tensors, part in parts:
        end = begin + part.stop - part.start
        for kept, new in zip(tensors[:3], found, strict=True):
            kept[part] = new[begin:end]
        begin = end


def count_ranks_plainly() -> None:
    """Make vLLM count the ranks of tokens without a compiled kernel, which takes seconds to make.

    It comes with every answer that has log-probabilities, and nothing of ours reads it.
    """
    from vllm.v1.sample import sampler

    compiled = getattr(sampler, _RANKS, None)
    plain = getattr(compiled, "_torchdynamo_orig_callable", None)
    if plain is not None:
        setattr(sampler, _RANKS, plain)


_RANKS = "batched_count_greater_than"

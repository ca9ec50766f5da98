"""The planner: likelihood rows become a token trie, the trie becomes packs that share every prefix.

A row feeds ``context + continuation[:-1]``; sorted rows and the length of what each shares with the one
before it (``shared``) are the trie. A subtree is a range of sorted rows. From the root down, a subtree is

* a **block** if what lies below its common prefix is small: its tokens go through the network together, each
  token seeing its own ancestors only;
* a **trunk** if its common prefix is worth a forward of its own: the prefix is computed once, in chunks, its
  keys and values are kept while the subtree is worked on, and given up when it is done (depth first, so the
  prefixes kept at any time are those of one row);
* dissolved otherwise: its children repeat the few tokens they share.

Blocks that hang on one trunk travel together in packs of bounded size. What is kept therefore never exceeds
the longest row, nor ``PlanLimits.kept_tokens``: a prefix beyond that is computed again instead.

Nothing here knows of tensors; packs depend on the rows' tokens only, not on their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cme_bench.engines.packs import Pack, PackSequence, Unit, chain
from cme_bench.engines.requests import TokenIds
from cme_bench.engines.sorted_rows import SortedRows


@dataclass(slots=True)
class PlanLimits:
    """Bound what a plan may use. Limits may shrink while a plan is read: packs made later obey.

    ``pack_tokens``: most tokens of a pack. ``pack_scored``: most places of a pack whose logits are needed. A
    single block may exceed both if it cannot be divided. ``block_tokens``: most tokens of a block below its
    common prefix (they all attend within one mask). ``forward_tokens``: how many tokens more in a forward
    cost as much time as one more forward. ``kept_tokens``: longest prefix whose keys and values are kept.
    """

    pack_tokens: int
    pack_scored: int
    block_tokens: int
    forward_tokens: int
    kept_tokens: int


def plan_packs(rows: Sequence[tuple[TokenIds, TokenIds]], limits: PlanLimits) -> Iterator[Pack]:
    """Yield packs that together score every ``(context, continuation)`` of ``rows``; neither part is empty.

    Every token of a continuation is one read of row ``i``, its index in ``rows``. Packs must be run in order.
    """
    if rows:
        yield from _Planner(SortedRows(rows), limits).packs()


def plan_groups(prompts: Sequence[TokenIds], limits: PlanLimits) -> Iterator[tuple[list[int], int]]:
    """Yield ``(indices, prefix)``: prompts that are continued together, and how many tokens they share.

    Every prompt keeps at least one token of its own. A prefix is shared where that saves more than the
    forward that computes it costs; prompts that share nothing come last, as one group with prefix 0.
    """
    alone: list[int] = []
    if prompts:
        rows = SortedRows([(prompt, (0,)) for prompt in prompts])
        work = [(0, len(prompts))]
        while work:
            low, high = work.pop()
            prefix = rows.prefix(low, high, limits.kept_tokens)
            gain = prefix * (high - low - 1)
            if high - low > 1:
                children = rows.children(low, high, rows.common(low, high))
                deeper = [rows.prefix(a, b, limits.kept_tokens) * (b - a - 1) for a, b in children]
                if sum(max(0, g - limits.forward_tokens) for g in deeper) > gain - limits.forward_tokens:
                    work += reversed(children)
                    continue
            if gain >= limits.forward_tokens:
                yield sorted(rows.row[low:high].tolist()), prefix
            else:
                alone += rows.row[low:high].tolist()
    if alone:
        yield sorted(alone), 0


def chain_packs(tokens: TokenIds, limits: PlanLimits) -> Iterator[Pack]:
    """Yield packs that compute and keep ``tokens``, and read nothing."""
    for start in range(0, len(tokens), limits.pack_tokens):
        yield Pack(start, True, (chain(tokens[start : start + limits.pack_tokens], start),))


def pack_sequences(packs: Iterable[Pack], limits: PlanLimits) -> Iterator[PackSequence]:
    """Yield ``packs`` in their order, in forwards no larger than a pack may be: each costs its start."""
    waiting: list[Pack] = []
    tokens = scored = 0
    for pack in packs:
        needed = len(pack.reads[0])
        if waiting and (tokens + pack.n_tokens > limits.pack_tokens or scored + needed > limits.pack_scored):
            yield PackSequence(tuple(waiting))
            waiting, tokens, scored = [], 0, 0
        waiting.append(pack)
        tokens += pack.n_tokens
        scored += needed
    if waiting:
        yield PackSequence(tuple(waiting))


class _Planner:
    def __init__(self, rows: SortedRows, limits: PlanLimits) -> None:
        self.rows = rows
        self.limits = limits

    def packs(self) -> Iterator[Pack]:
        trunks = [(0, len(self.rows.length), 0, 0)]  # rows, tokens kept already, tokens kept then
        while trunks:
            low, high, start, stop = trunks.pop()
            yield from self._chain_packs(low, high, start, stop)
            blocks, deeper = self._expand(low, high, stop)
            yield from self._block_packs(blocks, stop)
            trunks += reversed(deeper)

    def _chain_packs(self, low: int, high: int, start: int, stop: int) -> Iterator[Pack]:
        while start < stop:
            until = min(stop, start + self._chunk)
            yield Pack(start, True, (self.rows.chain(low, high, start, until),))
            start = until

    @property
    def _chunk(self) -> int:
        return min(self.limits.pack_tokens, self.limits.pack_scored)

    def _expand(
        self, low: int, high: int, start: int
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int, int, int]]]:
        """Return the blocks and trunks of rows [low, high), which share the ``start`` first tokens."""
        rows, limits = self.rows, self.limits
        blocks: list[tuple[int, int]] = []
        trunks: list[tuple[int, int, int, int]] = []
        work = [(low, high)]
        while work:
            low, high = work.pop()
            size = rows.tokens(low, high, start)
            if size == 0:
                continue
            common = rows.common(low, high)
            below = size - (common - start)
            scored = rows.scored(low, high, start)
            fits = size <= limits.pack_tokens and scored <= limits.pack_scored
            connected = common > start or below == 0
            if connected and fits and below <= limits.block_tokens:
                blocks.append((low, high))
            elif below == 0:
                stop = min(start + (size - 1) // self._chunk * self._chunk, limits.kept_tokens)
                if stop > start:
                    trunks.append((low, high, start, stop))
                else:
                    blocks.append((low, high))
            else:
                children = rows.children(low, high, common)
                gain = (common - start) * (len(children) - 1)
                if start < common <= limits.kept_tokens and gain >= limits.forward_tokens:
                    trunks.append((low, high, start, common))
                else:
                    work += reversed(children)
        return blocks, trunks

    def _block_packs(self, blocks: list[tuple[int, int]], start: int) -> Iterator[Pack]:
        """Yield packs of blocks, the largest blocks first, so that blocks of a pack are of like size.

        As rows of the largest's length they take up twice ``pack_tokens`` at most.
        """
        rows, limits = self.rows, self.limits
        sized = [(rows.tokens(low, high, start), low, high) for low, high in blocks]
        sized.sort(key=lambda block: -block[0])
        units: list[Unit] = []
        tokens = scored = 0
        for size, low, high in sized:
            needed = rows.scored(low, high, start)
            if units and (
                tokens + size > limits.pack_tokens
                or scored + needed > limits.pack_scored
                or (len(units) + 1) * len(units[0].tokens) > 2 * limits.pack_tokens
            ):
                yield Pack(start, False, tuple(units))
                units, tokens, scored = [], 0, 0
            units.append(rows.block(low, high, start))
            tokens += size
            scored += needed
        if units:
            yield Pack(start, False, tuple(units))

"""Decoding with fixed shapes: every step is the same work on the same memory, which CUDA can replay.

A GPU computes a step of a small model in less time than Python takes to ask for it. Rows are padded to a few
counts, keys and values lie in memory of a few lengths, and what changes from step to step (tokens, positions,
what is seen) lies in tensors that stay where they are. The second step of a shape is captured as a CUDA
graph; later ones are replayed. Without CUDA the same steps are computed as such.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cme_bench.engines.hf.attention import AttentionCall, additive
from cme_bench.engines.hf.attention_hook import attention_of
from cme_bench.engines.hf.batching import is_out_of_memory
from cme_bench.engines.hf.copies import to_device
from cme_bench.engines.hf.forward import CausalForward, base_model, max_positions
from cme_bench.engines.hf.prefix_decoding import PrefixSession
from cme_bench.engines.hf.tree_attention import KeptPrefix, PackAttention
from cme_bench.engines.packs import Ints, Pack, chain
from cme_bench.util.cuda_graph import captured
from cme_bench.util.errors import first_line
from cme_bench.util.notes import Note, unheard

COLUMNS, ROWS = 128, 8
"""Lengths of kept keys, and counts of rows, are these times 1, 2, 3, 4, 6, 8, 12, ... Few shapes come often,
and each is computed twice by Python before it is replayed."""
_LEAVE = 8
"""So many times fewer rows at work make a step worth another shape."""


class Shape(NamedTuple):
    """A step of so many rows, columns of tokens kept after the prefix, and tokens of the prefix."""

    rows: int
    columns: int
    prefix: int

    @classmethod
    def of(cls, rows: int, columns: int, prefix: int) -> Shape:
        """Return the smallest shape with room for so many."""
        return cls(_rounded(rows, ROWS), _rounded(columns, COLUMNS), prefix)


def _rounded(count: int, unit: int) -> int:
    """Return the least of 1, 2, 3, 4, 6, 8, 12, ... units with room for so many."""
    units = -(-count // unit)
    power = 1 << max(0, units - 1).bit_length()
    return unit * (power * 3 // 4 if power >= 4 and power * 3 // 4 >= units else power)


class Step:
    """The tensors that a step of one shape reads and moves on.

    ``ids`` and ``positions`` [rows, 1] are those of the tokens fed, ``column`` [1] takes their keys, and
    ``seen`` [rows, columns] says which columns a row sees.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.ids = torch.zeros(shape.rows, 1, dtype=torch.int64, device=device)
        self.positions = torch.zeros_like(self.ids)
        self.column = torch.zeros(1, dtype=torch.int64, device=device)
        self.seen = torch.zeros(shape.rows, shape.columns, dtype=torch.bool, device=device)
        self.computed = False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits = torch.empty(0)

    def begin(self, seen: Tensor, positions: Tensor, column: int) -> None:
        """Go on from what was ``seen`` [rows, n]; the next tokens stand at ``positions`` [rows, 1]."""
        self.seen.zero_()
        self.seen[: seen.shape[0], : seen.shape[1]] = seen
        self.positions.zero_()
        self.positions[: len(positions)] = positions
        self.column.fill_(column)


class Stepper:
    """Hold the memory and the graphs of the batches that an engine decodes, one batch at a time.

    ``note`` is told, once, if CUDA takes no graph of the model: its steps are computed as such then.
    ``pack_tokens``: most tokens of prompts that are computed at once.
    """

    def __init__(self, forward: CausalForward, note: Note = unheard, pack_tokens: int = 1 << 16) -> None:
        self.forward = forward
        self.pack_tokens = pack_tokens
        self.most = max_positions(base_model(forward.model).config) - 1
        self.graphs = forward.device.type == "cuda"
        self._note = note
        self._memory: dict[tuple[nn.Module, str], Tensor] = {}
        self._steps: dict[Shape, Step] = {}
        self._pool: Any = None  # of the graphs, which never run at once

    def step(self, shape: Shape) -> Step:
        """Return the step of a shape."""
        if shape not in self._steps:
            self._steps[shape] = Step(shape, self.forward.device)
        return self._steps[shape]

    def view(self, module: nn.Module, name: str, rows: int, columns: int, like: Tensor) -> Tensor:
        """Return a module's memory ``name`` as [rows, key heads, columns, size], heads and type as ``like``.

        It is the same memory in every shape. Where it must grow, graphs of the smaller one are given up.
        """
        shape = (rows, like.shape[1], columns, like.shape[3])
        numbers = shape[0] * shape[1] * shape[2] * shape[3]
        if (module, name) not in self._memory or self._memory[module, name].numel() < numbers:
            self._steps = {key: Step(key, self.forward.device) for key in self._steps}
            self._pool = None  # torch takes no graph into a pool that has none left
            self._memory.pop((module, name), None)
            self._memory[module, name] = like.new_zeros(numbers)
        return self._memory[module, name][:numbers].view(shape)

    def run(self, step: Step, compute: Callable[[], Tensor]) -> Tensor:
        """Return the logits of ``compute``, which reads and moves on ``step``; replay it where that goes."""
        if step.graph is None and step.computed and self.graphs:
            self._capture(step, compute)
        if step.graph is not None:
            step.graph.replay()
            return step.logits
        step.computed = True
        return compute()

    def _capture(self, step: Step, compute: Callable[[], Tensor]) -> None:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            step.graph, step.logits = captured(compute, self._pool)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.graphs = False
            self._note(f"decoding without CUDA graphs: {first_line(error)}")


def parts(lengths: Sequence[int], most: int) -> list[range]:
    """Return rows of these lengths in parts, in order, of ``most`` tokens or one row."""
    starts, tokens = [0], 0
    for row, length in enumerate(lengths):
        if row > starts[-1] and tokens + length > most:
            starts.append(row)
            tokens = 0
        tokens += length
    return [range(*ends) for ends in itertools.pairwise([*starts, len(lengths)])]


class StaticSession(PrefixSession):
    """Decode rows after a kept prefix, or after none, in steps of fixed shapes. ``prefilled``: positions
    that were computed of prompts.

    Rows that are finished stay until an eighth is left: a step takes about as long for more rows.
    """

    def __init__(self, forward: CausalForward, kept: KeptPrefix, prefix: int, stepper: Stepper) -> None:
        super().__init__(forward, kept, prefix)
        self._stepper = stepper
        self.prefilled = 0
        self._like: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # empty, for heads, sizes and types
        self._rows = self._fed = 0
        self._step: Step | None = None

    def feed(self, ids: Tensor, mask: Tensor) -> Tensor:
        if self._step is None:
            return self._prefill(ids, mask)
        if self._fed == self._step.shape.columns:
            self._move(torch.arange(self._rows, device=self.device))
        step = self._step
        step.ids[: self._rows] = ids
        logits = self._stepper.run(step, self._compute)
        self._fed += 1
        return logits[: self._rows]

    def can_select(self, kept: int) -> bool:
        return self._step is not None and _LEAVE * Shape.of(kept, 1, 0).rows <= self._step.shape.rows

    def select(self, kept: Tensor) -> None:
        self._move(kept)

    def _prefill(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute the prompts side by side, as likelihoods are, and lay their keys and values into place."""
        lengths, rows = mask.sum(1).tolist(), ids.cpu().numpy()
        self._rows, self._fed = ids.shape
        shape = Shape.of(self._rows, self._fed + 1, self._prefix)
        logits = [
            self._side_by_side([rows[i, self._fed - lengths[i] :] for i in some], some, shape)
            for some in parts(lengths, self._stepper.pack_tokens)
        ]
        self._mask = mask
        self._step = self._stepper.step(shape)
        self._step.begin(mask > 0, self._positions(1) + 1, self._fed)
        return torch.cat(logits)

    def _side_by_side(self, prompts: Sequence[Ints], rows: range, shape: Shape) -> Tensor:
        """Return the logits [prompts, vocab] after prompts that have these ``rows`` of memory."""
        pack = Pack(self._prefix, False, tuple(chain(tokens, self._prefix) for tokens in prompts))
        lengths = [len(tokens) for tokens in prompts]
        places = np.concatenate([np.arange(self._fed - n, self._fed) for n in lengths])
        tokens, positions, last, row, column = (
            to_device(part, self.device)
            for part in (pack.tokens, pack.positions, pack.starts[1:] - 1, np.repeat(rows, lengths), places)
        )
        attention = PackAttention(pack, self._kept, self.device, kernel=self._forward.tree_kernel)

        def attend(call: AttentionCall) -> Tensor:
            self._lay(call, shape, row, column)
            return attention(call)

        with self._forward.seeing(pack.tokens), attention_of(self._forward, attend):
            logits: Tensor = self._forward.uncached(tokens[None], positions[None], last)[0]
        self.prefilled += pack.n_tokens
        return logits

    def _lay(self, call: AttentionCall, shape: Shape, row: Tensor, column: Tensor) -> None:
        """Lay keys and values of some tokens into the memory of ``shape``, emptied before the first."""
        module, pair = call.module, (call.key, call.value)
        if module not in self._like:
            self._like[module] = _empty(call.key), _empty(call.value)
            for i, like in enumerate(self._like[module]):
                self._view(shape, module, i).zero_()  # what no row sees must be a number all the same
                if self._prefix:
                    self._prefix_view(module, i, like).copy_(self._kept.head(module, self._prefix)[i])
        for i, states in enumerate(pair):
            self._view(shape, module, i)[row, :, column] = states[0].transpose(0, 1)

    def _move(self, kept: Tensor) -> None:
        """Go on with the rows ``kept`` in a shape that has room for one token more."""
        assert self._step is not None
        before, seen, positions = self._step, self._step.seen[kept], self._step.positions[kept]
        shape = Shape.of(len(kept), self._fed + 1, self._prefix)
        self._place(shape, lambda module, i: self._view(before.shape, module, i)[kept])
        self._rows = len(kept)
        self._step = self._stepper.step(shape)
        self._step.begin(seen[:, : self._fed], positions, self._fed)

    def _place(self, shape: Shape, states: Callable[[nn.Module, int], Tensor]) -> None:
        """Lay ``states`` of every module, keys (0) and values (1), into the memory of ``shape``; a copy of
        one at a time is held."""
        for module in self._like:
            for i in (0, 1):
                found = states(module, i)[:, :, : self._fed]
                view = self._view(shape, module, i)
                view.zero_()  # what no row sees must be a number all the same
                view[: found.shape[0], :, : found.shape[2]] = found

    def _view(self, shape: Shape, module: nn.Module, i: int) -> Tensor:
        return self._stepper.view(module, f"after {i}", shape.rows, shape.columns, self._like[module][i])

    def _prefix_view(self, module: nn.Module, i: int, like: Tensor) -> Tensor:
        return self._stepper.view(module, f"prefix {i}", 1, self._prefix, like)

    def _compute(self) -> Tensor:
        """Compute a step; nothing here depends on a number that only the host knows."""
        step = self._step
        assert step is not None
        self._masks.clear()
        step.seen.index_fill_(1, step.column, True)
        with attention_of(self._forward, self._attend):
            logits = self._forward.uncached(step.ids, step.positions, 1)
        step.positions.add_(1).clamp_(max=self._stepper.most)  # a finished row has no place left to go
        step.column.add_(1)
        self._masks.clear()
        return logits[:, -1]

    def _keep(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        step = self._step
        assert step is not None
        views = [self._view(step.shape, call.module, i) for i in (0, 1)]
        for view, states in zip(views, (call.key, call.value), strict=True):
            view.index_copy_(2, step.column, states)
        return views[0], views[1]

    def _prefix_of(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        keys, values = (self._prefix_view(module, i, self._like[module][i]) for i in (0, 1))
        return keys, values

    def _masks_for(
        self, window: int | None, groups: int, n: int, states: Tensor
    ) -> tuple[Tensor, int, Tensor | None]:
        assert self._step is not None
        key = (window, groups, states.dtype, states.device)
        if key not in self._masks:
            seen = self._step.seen[:, None].expand(-1, groups, -1)
            self._masks[key] = additive(seen, states.dtype)[:, None], 0, None
        return self._masks[key]


def _empty(states: Tensor) -> Tensor:
    """Return a tensor of the heads, size and type of ``states`` that holds nothing."""
    return states.new_empty(0, states.shape[1], 0, states.shape[3])

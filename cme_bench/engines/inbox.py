"""Inboxes: how requests reach an engine, all at once or while it computes."""

from __future__ import annotations

import itertools
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

from cme_bench.engines.logits import LogitsError
from cme_bench.engines.requests import Request, Response

Numbered: TypeAlias = tuple[int, Request]
"""A request and its number, which its response carries; no number comes twice."""


class Inbox(Protocol):
    """Hand requests of one kind to one call of ``Engine.serve``, in batches.

    A batch is what one ``take`` returns. An engine that computes batch by batch answers a batch, or several
    small ones together, before it takes the next. An engine that computes continuously takes the next one
    when it has room.
    """

    def take(self, *, wait: bool) -> list[Numbered]:
        """Return the next batch; [] if there is none now.

        ``wait``: block until there is a batch or the inbox is closed. An engine waits only while it owes no
        response: who fills the inbox may wait for that response first.
        """

    @property
    def closed(self) -> bool:
        """Tell whether no batch will come any more."""


class Batches:
    """Hand out lists, one a ``take``, numbered throughout from 0; empty lists are left out."""

    def __init__(self, batches: Iterable[Sequence[Request]]) -> None:
        numbers = itertools.count()
        self._left = deque([(next(numbers), request) for request in batch] for batch in batches if batch)

    def take(self, *, wait: bool) -> list[Numbered]:
        """As ``Inbox.take``; there is never anything to wait for."""
        return self._left.popleft() if self._left else []

    @property
    def closed(self) -> bool:
        return not self._left


class Given(Batches):
    """Hand out one list as one batch."""

    def __init__(self, requests: Sequence[Request]) -> None:
        super().__init__([requests])


class Resumed:
    """Hand out a batch that was taken already, then what follows it in its inbox."""

    def __init__(self, batch: list[Numbered], inbox: Inbox) -> None:
        self._batch, self._inbox = batch, inbox

    def take(self, *, wait: bool) -> list[Numbered]:
        """As ``Inbox.take``."""
        batch, self._batch = self._batch, []
        return batch or self._inbox.take(wait=wait)

    @property
    def closed(self) -> bool:
        return not self._batch and self._inbox.closed


class Mailbox:
    """Hand out what another thread puts in: a batch is whatever has arrived.

    It may be filled for the next call of ``Engine.serve`` already while it serves one; ``reopen`` goes on
    with that.
    """

    def __init__(self) -> None:
        self._arrived: queue.SimpleQueue[Sequence[Numbered] | None] = queue.SimpleQueue()
        self._closed = False
        self.n_taken = 0

    def put(self, requests: Sequence[Numbered]) -> None:
        """Add requests."""
        self._arrived.put(requests)

    def close(self) -> None:
        """Say that no more will come."""
        self._arrived.put(None)

    def reopen(self) -> None:
        """Begin with what was put after ``close``."""
        self._closed = False
        self.n_taken = 0

    def take(self, *, wait: bool) -> list[Numbered]:
        """As ``Inbox.take``."""
        batch: list[Numbered] = []
        while not self._closed:
            try:
                requests = self._arrived.get(block=wait and not batch)
            except queue.Empty:
                break
            if requests is None:
                self._closed = True
            else:
                batch += requests
        self.n_taken += len(batch)
        return batch

    @property
    def closed(self) -> bool:
        return self._closed


def batch_by_batch(
    inbox: Inbox,
    answer: Callable[[Sequence[Request]], Iterable[tuple[int, Response]]],
    enough: Callable[[Sequence[Request]], bool] = lambda requests: True,
) -> Iterator[tuple[int, Response]]:
    """Serve ``inbox`` with a function that answers one batch.

    ``answer`` takes requests and yields ``(index among them, response)``. A LogitsError that it raises gets
    the number of its request. Batches that are there already are put together until they are ``enough``.
    """
    while batch := inbox.take(wait=True):
        while not enough([request for _, request in batch]) and (more := inbox.take(wait=False)):
            batch = [*batch, *more]
        try:
            for index, response in answer([request for _, request in batch]):
                yield batch[index][0], response
        except LogitsError as error:
            number = None if error.request is None else batch[error.request][0]
            raise LogitsError.at(number, error.where) from error

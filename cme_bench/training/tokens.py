"""Training examples as token ids: source and target encoded apart, the target alone to be learnt."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cme_bench.engines.base import TokenIds
from cme_bench.prompts.bos import Bos, decide_bos, model_types
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.formats import PromptFormat, resolve_format
from cme_bench.prompts.items import truncate
from cme_bench.training.book import Book
from cme_bench.training.conversations import render, tokenise
from cme_bench.training.options import DEFAULT_FORMAT, TrainOptions
from cme_bench.training.own_rows import Completion, Conversation, Instruction, TextRow
from cme_bench.training.pictured import Pictured
from cme_bench.training.templates import Prompted
from cme_bench.util.errors import UsageError

MIN_LENGTH = 32
"""Least sequence length, in tokens: less holds no prompt of the suite."""
_BATCH = 2048


@dataclass(frozen=True, slots=True)
class Example:
    """``ids``: source then target; the first ``source_length`` of them are not learnt.

    ``cut_source``, ``cut_target``: tokens that did not fit. ``gaps``: [start, stop) of the tokens behind the
    source that are not learnt either: what others say between two answers.
    """

    ids: tuple[int, ...]
    source_length: int
    cut_source: int = 0
    cut_target: int = 0
    gaps: tuple[tuple[int, int], ...] = ()


class TrainingEncoder:
    """Prompts and answers to token ids, in the prompt format that the adapter will be evaluated with.

    ``teamlora``: ``instruction[\\ninput]</s>`` then answer and EOS, the authors' way. ``chat``: the model's
    own template, then the answer and what the template ends a turn with. ``plain``: the prompt, a space, the
    answer and EOS. The source gets exactly the special tokens that evaluation gives a prompt (``bos``, by
    default what the tokenizer adds), the target none but its end. A pair longer than ``max_length`` loses
    tokens from the left of its source, as evaluation cuts prompts (BOS and at least one token stay); only
    then from the right of its target.

    Raises UsageError for an unknown format, ``chat`` without a template, a tokenizer without EOS, and a
    ``max_length`` below ``MIN_LENGTH``.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt_format: str,
        max_length: int,
        bos: Bos | None = None,
        book: Book | None = None,
    ) -> None:
        if max_length < MIN_LENGTH:
            raise UsageError(
                f"--max-length {max_length} is too small to train on; give at least {MIN_LENGTH}"
            )
        if tokenizer.eos_token_id is None:
            raise UsageError("the tokenizer has no end-of-sequence token, so no answer could ever end")
        self.book = book
        vision = None if book is None else book.vision
        self.format: PromptFormat = resolve_format(prompt_format, tokenizer, generated=True, vision=vision)
        self.max_length = max_length
        self.encoder = Encoder(tokenizer, bos)
        self.end = self._end_of_answer(tokenizer)

    def _end_of_answer(self, tokenizer: Any) -> tuple[int, ...]:
        """Return EOS, or the text that the chat template puts after an assistant's words."""
        if self.format.template is not None and (end := self.format.template.end_of_answer()):
            return self.encoder.encode([end], special=False)[end]
        return (int(tokenizer.eos_token_id),)

    def texts(self, asked: Prompted | Instruction | Completion) -> tuple[str, str]:
        """Return source and target as they are tokenised."""
        if isinstance(asked, Completion) and self.format.render is None:
            return asked.prompt, asked.completion
        source = asked.source if isinstance(asked, Prompted) else asked.asked
        if self.format.render is None:
            return source, asked.target if asked.target[:1].isspace() else f" {asked.target}"
        message = {"role": "user", "content": source}
        if self.format.takes_input and isinstance(asked, Instruction):
            message |= {"content": asked.instruction, "input": asked.input}
        return self.format.render([message]), asked.target

    def encode(self, prompts: Iterable[Prompted | TextRow | Pictured]) -> Iterator[Example]:
        """Yield the examples, in order; texts are tokenised a few thousand at a time.

        Raises UsageError for a conversation that the chat template does not show as it is, and for images
        that do not fit.
        """
        stream = iter(prompts)
        while batch := list(islice(stream, _BATCH)):
            rows = [each.row if isinstance(each, Pictured) else each for each in batch]
            pictured = [each if isinstance(each, Pictured) else None for each in batch]
            chats = self._conversations(
                [
                    (row, seen)
                    for row, seen in zip(rows, pictured, strict=True)
                    if isinstance(row, Conversation)
                ]
            )
            pairs = self._pairs(
                [
                    (row, seen)
                    for row, seen in zip(rows, pictured, strict=True)
                    if not isinstance(row, Conversation)
                ]
            )
            for row in rows:
                yield next(chats if isinstance(row, Conversation) else pairs)

    def _pairs(
        self, asked: Sequence[tuple[Prompted | Instruction | Completion, Pictured | None]]
    ) -> Iterator[Example]:
        batch = [self.texts(each) for each, _ in asked]
        sources = self.encoder.encode((source for source, _ in batch), rendered=self.format.renders_bos)
        targets = self.encoder.encode((target for _, target in batch), special=False)
        for (source, target), (_, seen) in zip(batch, asked, strict=True):
            ids = sources[source] if seen is None else self._numbered(source, sources[source], seen)
            yield self._whole(self._fit(ids, self._ended(targets[target])), seen)

    def _numbered(self, text: str, ids: TokenIds, seen: Pictured) -> TokenIds:
        """Return the ids of a prompt with those of its images. UsageError, with the row's place, if that
        cannot be."""
        if self.book is None:
            raise UsageError(f"{seen.place}: the row has images, which this training does not show")
        try:
            return self.book.numbered(text, ids, seen.images)
        except ValueError as error:
            raise UsageError(f"{seen.place}: {error}") from error

    def _grown(self, ids: TokenIds, seen: Pictured) -> list[tuple[int, int]]:
        """Return the places of images among ``ids``, and how many tokens each becomes."""
        assert self.book is not None
        vision = self.book.vision
        places = [place for place, token in enumerate(ids) if token == vision.token_id]
        return list(zip(places, map(vision.places, seen.images), strict=True))

    def _whole(self, example: Example, seen: Pictured | None) -> Example:
        """Return an example. UsageError if its images were cut."""
        if seen is not None and example.cut_source:
            wanted = len(example.ids) + example.cut_source + example.cut_target
            raise UsageError(
                f"{seen.place}: {wanted} tokens with its images, and --max-length is {self.max_length}: "
                f"images are never cut; give --max-length {wanted}"
            )
        return example

    def _ended(self, target: Sequence[int]) -> tuple[int, ...]:
        """Return an answer with its end, once: rows may have it written out."""
        ended = tuple(target[-len(self.end) :]) == self.end
        return tuple(target) if ended else (*target, *self.end)

    def _conversations(self, chats: Sequence[tuple[Conversation, Pictured | None]]) -> Iterator[Example]:
        if not chats:
            return
        template = self.format.template
        assert template is not None  # resolved_format sees to it
        end = template.end_of_answer()
        rendered = [render(chat, template, end) for chat, _ in chats]
        tokenised = tokenise(rendered, self.encoder, self.end[-1], renders_bos=self.format.renders_bos)
        for (ids, spans), shown, (_, seen) in zip(tokenised, rendered, chats, strict=True):
            if seen is None:
                yield self._fit_conversation(ids, spans)
                continue
            numbered = self._numbered(shown.text, ids, seen)
            moved = _moved(spans, self._grown(ids, seen))
            yield self._whole(self._fit_conversation(numbered, moved), seen)

    def _fit_conversation(self, ids: TokenIds, spans: Sequence[tuple[int, int]]) -> Example:
        """Cut a conversation from its left, where it is too long: the last answer stays whole."""
        begin = self.encoder.kept(ids, self.max_length)
        cut = max(0, len(ids) - self.max_length)
        kept = truncate(ids, self.max_length, begin)
        moved = [(max(start - cut, begin), stop - cut) for start, stop in spans if stop - cut > begin]
        learnt = sum(stop - start for start, stop in moved)
        lost = sum(stop - start for start, stop in spans) - learnt
        gaps = tuple((a, b) for (_, a), (b, _) in pairwise(moved))
        return Example(kept, moved[0][0], cut - lost, lost, gaps)

    def fits(self, rows: Sequence[TextRow | Pictured]) -> list[bool]:
        """Return of each row whether its (last) answer fits with a token of its prompt.

        A token stands for one byte at least, so few answers need to be tokenised for it.
        """
        most = self.max_length - self.encoder.prefix_length - 1 - len(self.end)
        verdicts = [len(row.target.encode(errors="replace")) + 1 <= most for row in rows]
        doubtful = [row.target for row, fine in zip(rows, verdicts, strict=True) if not fine]
        lengths: dict[str, int] = {}
        for start in range(0, len(doubtful), _BATCH):
            known = self.encoder.encode(doubtful[start : start + _BATCH], special=False)
            lengths |= {text: len(ids) for text, ids in known.items()}
        return [fine or lengths[row.target] + 1 <= most for row, fine in zip(rows, verdicts, strict=True)]

    def _fit(self, source: Sequence[int], target: Sequence[int]) -> Example:
        least = self.encoder.prefix_length + 1
        kept_target = tuple(target[: self.max_length - least])
        room = self.max_length - len(kept_target)
        kept = truncate(tuple(source), room, self.encoder.kept(tuple(source), room))
        return Example(
            (*kept, *kept_target), len(kept), len(source) - len(kept), len(target) - len(kept_target)
        )

    def describe(self) -> dict[str, Any]:
        """Return the tokenisation as ``cme_training.json`` records it."""
        return {
            "source_and_target": "separate",
            "target_special_tokens": False,
            "prefix_tokens": self.encoder.prefix_length,
            "bos": self.encoder.bos.describe(),
            "end_of_answer": list(self.end),
            "max_length": self.max_length,
            "truncation": "left of the source, then right of the target",
        }


def _moved(spans: Sequence[tuple[int, int]], grown: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans of tokens where some tokens before them have become several.

    ``grown``: the place of each such token, and how many it became.
    """

    def moved(place: int) -> int:
        return place + sum(count - 1 for at, count in grown if at < place)

    return [(moved(start), moved(stop)) for start, stop in spans]


def training_encoder(
    options: TrainOptions, tokenizer: Any, config: Any, book: Book | None = None
) -> TrainingEncoder:
    """Return what makes the examples of a training of the model with this config; ``book``: of its images.

    Raises UsageError as :class:`TrainingEncoder` does, and where ``--bos`` cannot be honoured.
    """
    bos = decide_bos(tokenizer, options.bos, model_types=model_types(config))
    name = DEFAULT_FORMAT if options.prompt_format == "auto" else options.prompt_format
    return TrainingEncoder(tokenizer, name, options.max_length, bos, book)


class TokenTable:
    """Examples in three flat arrays; ``table[i]`` is ``{"ids": int32 array, "source_length": int}``, with
    ``gaps`` where an example has some."""

    def __init__(self, examples: Iterable[Example]) -> None:
        ids, starts, sources = array("i"), array("q", [0]), array("i")
        self.cut_sources = self.cut_targets = 0
        self._gaps: dict[int, tuple[tuple[int, int], ...]] = {}
        for example in examples:
            if example.gaps:
                self._gaps[len(sources)] = example.gaps
            ids.extend(example.ids)
            starts.append(len(ids))
            sources.append(example.source_length)
            self.cut_sources += example.cut_source > 0
            self.cut_targets += example.cut_target > 0
        self._ids = np.frombuffer(ids, dtype=np.int32) if ids else np.zeros(0, dtype=np.int32)
        self._starts = np.frombuffer(starts, dtype=np.int64)
        self._sources = np.frombuffer(sources, dtype=np.int32) if sources else np.zeros(0, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, stop = self._starts[index], self._starts[index + 1]
        found = {"ids": self._ids[start:stop], "source_length": int(self._sources[index])}
        return found | {"gaps": self._gaps[index]} if index in self._gaps else found

    @property
    def highest(self) -> int:
        """The highest token id."""
        return int(self._ids.max(initial=0))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, source and target."""
        return np.diff(self._starts)

    @property
    def target_lengths(self) -> NDArray[np.int64]:
        """Tokens of each example that are learnt."""
        learnt = self.lengths - self._sources
        for index, gaps in self._gaps.items():
            learnt[index] -= sum(stop - start for start, stop in gaps)
        return learnt

"""Likelihoods on vLLM in the ways that let it use its prefix cache.

lm-eval asks for ``prompt_logprobs``, which computes every context anew for every choice and scores every
place of it over the vocabulary. Here a question is asked in one of two ways, whichever computes less:

* **nodes**: every inner node of the trie of its choices is one request: the prompt is context + node, one
  token is generated, and the log-probabilities of exactly the node's children are returned. A question with
  single-token choices is one request.
* **tails**: every choice is one request whose prompt is the row without its last token. The last token is
  scored as a node's child, those before it as prompt tokens, and the context may come from the cache. That is
  exact only if nothing of the choice came from there: else the row is asked again, past the cache.

A cache holds whole blocks only, so a request computes what lies beyond its prompt's last whole block: many
nodes of a long choice would each compute that again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from cme_bench.engines.base import LoglikelihoodRequest, LoglikelihoodResponse, TokenIds

MOST_CHILDREN = 128
"""Most tokens that vLLM allows in ``SamplingParams.logprob_token_ids``."""
REQUEST_TOKENS = 8
"""A request costs as much as so many tokens more (measured on 2 CPU cores, SmolLM2-135M)."""
SCORED_TOKENS = 1.5
"""A prompt token whose logits are needed costs as much as so many tokens."""


@dataclass(frozen=True, slots=True)
class Node:
    """Score the tokens ``children`` after ``prompt``."""

    prompt: TokenIds
    children: TokenIds

    @property
    def scored(self) -> int:
        """Return how many tokens of the prompt itself are scored."""
        return 0


@dataclass(frozen=True, slots=True)
class Tail:
    """Score ``continuation``, of two tokens or more, after ``context``."""

    context: TokenIds
    continuation: TokenIds

    @property
    def prompt(self) -> TokenIds:
        return self.context + self.continuation[:-1]

    @property
    def children(self) -> TokenIds:
        return self.continuation[-1:]

    @property
    def scored(self) -> int:
        return len(self.continuation) - 1


Query: TypeAlias = Node | Tail

ScoredToken: TypeAlias = tuple[TokenIds, int]
"""A prompt, and a token that is scored after it."""


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """Hold the natural log of P(token | prompt), and whether the token is the likeliest there."""

    logprob: float
    greedy: bool


def question_nodes(request: LoglikelihoodRequest) -> list[Query]:
    """Return the nodes that together score a request, context by context; none for empty choices.

    A node of more than ``MOST_CHILDREN`` children is asked in several pieces.
    """
    tries: dict[TokenIds, dict[TokenIds, set[int]]] = {}
    for context, continuation in request.rows:
        trie = tries.setdefault(context, {})
        for depth, token in enumerate(continuation):
            trie.setdefault(continuation[:depth], set()).add(token)
    nodes: list[Query] = []
    for context, trie in sorted(tries.items()):
        for inner in sorted(trie):
            tokens = sorted(trie[inner])
            for start in range(0, len(tokens), MOST_CHILDREN):
                nodes.append(Node(context + inner, tuple(tokens[start : start + MOST_CHILDREN])))
    return nodes


def question_tails(request: LoglikelihoodRequest) -> list[Query]:
    """Return a tail for every distinct choice of two tokens or more, and nodes for the others."""
    rows = sorted({(context, continuation) for context, continuation in request.rows if continuation})
    short = tuple(row for row in rows if len(row[1]) == 1)
    tails: list[Query] = [Tail(*row) for row in rows if len(row[1]) > 1]
    return [*(question_nodes(LoglikelihoodRequest(short)) if short else []), *tails]


def plan_question(request: LoglikelihoodRequest, block: int) -> list[Query]:
    """Return the cheaper way to ask, for a cache with blocks of ``block`` tokens."""
    nodes = question_nodes(request)
    if all(len(continuation) < 2 for _, continuation in request.rows):
        return nodes
    tails = question_tails(request)
    return min(nodes, tails, key=lambda queries: sum(_cost(query, block) for query in queries))


def _cost(query: Query, block: int) -> float:
    reused = query.prompt if isinstance(query, Node) else query.context
    computed = len(query.prompt) - (len(reused) - 1) // block * block
    return REQUEST_TOKENS + computed + (SCORED_TOKENS - 1) * query.scored


@dataclass(slots=True)
class _Question:
    """Collect the scores of one request; those of ``missing`` queries are still to come."""

    number: int
    request: LoglikelihoodRequest
    missing: int
    scores: dict[ScoredToken, ChoiceScore]


class Collector:
    """Collect scores, in any order, into responses; a query of several questions in work is asked once.

    True while a question is unanswered.
    """

    def __init__(self, block: int) -> None:
        self._block = block
        self._questions: dict[Query, list[_Question]] = {}

    def __bool__(self) -> bool:
        return bool(self._questions)

    def queries(self, number: int, request: LoglikelihoodRequest) -> Iterator[Query]:
        """Yield the queries of a question that are not in work yet.

        A question has a query even if its choices are empty and their scores known.
        """
        queries = plan_question(request, self._block) or [Node(request.prompt, ())]
        question = _Question(number, request, len(queries), {})
        for query in queries:
            questions = self._questions.setdefault(query, [])
            questions.append(question)
            if len(questions) == 1:
                yield query

    def take(
        self, query: Query, scores: dict[ScoredToken, ChoiceScore]
    ) -> Iterator[tuple[int, LoglikelihoodRequest, LoglikelihoodResponse]]:
        """Yield the questions that the scores of ``query`` complete, each with its response."""
        for question in self._questions.pop(query):
            question.scores |= scores
            question.missing -= 1
            if not question.missing:
                yield question.number, question.request, _put_together(question.request, question.scores)


def _put_together(
    request: LoglikelihoodRequest, scores: dict[ScoredToken, ChoiceScore]
) -> LoglikelihoodResponse:
    logprobs, greedy = [], []
    for context, continuation in request.rows:
        tokens = [scores[context + continuation[:depth], t] for depth, t in enumerate(continuation)]
        logprobs.append(sum((score.logprob for score in tokens), 0.0))
        greedy.append(all(score.greedy for score in tokens))
    return LoglikelihoodResponse(tuple(logprobs), tuple(greedy))

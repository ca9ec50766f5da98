"""Likelihoods as one-token generations: the way of scoring that lets vLLM use its prefix cache.

lm-eval asks vLLM for ``prompt_logprobs``, which computes every context anew for every choice and scores every
place of it over the vocabulary. Here every inner node of the trie of a question's choices is one request:
the prompt is context + node, one token is generated, and the log-probabilities of exactly the node's children
are returned. Single-token choices are one request a question; shared contexts come from the prefix cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cme_bench.engines.base import LoglikelihoodRequest, LoglikelihoodResponse, TokenIds

MOST_CHILDREN = 128
"""What vLLM allows in ``SamplingParams.logprob_token_ids``."""


@dataclass(frozen=True, slots=True)
class Node:
    """Score the tokens ``children`` after ``prompt``."""

    prompt: TokenIds
    children: TokenIds


@dataclass(frozen=True, slots=True)
class NodeScore:
    """``logprobs``: natural log of P(child | prompt), by child; ``argmax``: the likeliest token of all."""

    logprobs: Mapping[int, float]
    argmax: int


def question_nodes(request: LoglikelihoodRequest) -> list[Node]:
    """The nodes that together score a request, in the order of their prompts; none for empty choices.

    A node of more than ``MOST_CHILDREN`` children is asked in several pieces.
    """
    children: dict[TokenIds, set[int]] = {}
    for context, continuation in request.rows:
        for depth, token in enumerate(continuation):
            children.setdefault(context + continuation[:depth], set()).add(token)
    nodes = []
    for prompt in sorted(children):
        tokens = sorted(children[prompt])
        for start in range(0, len(tokens), MOST_CHILDREN):
            nodes.append(Node(prompt, tuple(tokens[start : start + MOST_CHILDREN])))
    return nodes


def put_together(
    request: LoglikelihoodRequest, scores: Mapping[TokenIds, NodeScore]
) -> LoglikelihoodResponse:
    """The response, from the scores of the request's nodes by prompt (pieces of one node joined)."""
    logprobs, greedy = [], []
    for context, continuation in request.rows:
        total, chosen = 0.0, True
        for depth, token in enumerate(continuation):
            score = scores[context + continuation[:depth]]
            total += score.logprobs[token]
            chosen = chosen and score.argmax == token
        logprobs.append(total)
        greedy.append(chosen)
    return LoglikelihoodResponse(tuple(logprobs), tuple(greedy))


class Collector:
    """Node scores come in, in any order; responses go out when a question's last node is there.

    Equal nodes of several questions are asked once.
    """

    def __init__(self, requests: Sequence[LoglikelihoodRequest]) -> None:
        self._requests = requests
        self._waiting: dict[int, int] = {}
        self._scores: dict[int, dict[TokenIds, NodeScore]] = {}
        self._askers: dict[Node, list[int]] = {}

    def nodes(self, order: Sequence[int]) -> Iterator[Node]:
        """Nodes to ask, questions in ``order``, each question's nodes one after the other.

        A node that another question asked and that has not been answered yet is not asked again.
        """
        for index in order:
            nodes = question_nodes(self._requests[index])
            self._waiting[index] = len(nodes)
            self._scores[index] = {}
            for node in nodes:
                askers = self._askers.setdefault(node, [])
                askers.append(index)
                if len(askers) == 1:
                    yield node

    def take(self, node: Node, score: NodeScore) -> Iterator[tuple[int, LoglikelihoodResponse]]:
        """The questions that this node completes, each with its response."""
        for index in self._askers.pop(node):
            scores = self._scores[index]
            known = scores.get(node.prompt)
            scores[node.prompt] = (
                score if known is None else NodeScore({**known.logprobs, **score.logprobs}, score.argmax)
            )
            self._waiting[index] -= 1
            if not self._waiting[index]:
                del self._waiting[index], self._scores[index]
                yield index, put_together(self._requests[index], scores)

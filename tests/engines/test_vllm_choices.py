"""The trie of a question's choices: every answer is the sum a plain reading gives, whatever the order."""

from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from tries import requests

from cme_bench.engines import LoglikelihoodRequest, LoglikelihoodResponse, TokenIds
from cme_bench.engines.vllm.choices import MOST_CHILDREN, Collector, Node, NodeScore, question_nodes


def toy_logprob(prompt: TokenIds, token: int) -> float:
    """A log-probability that depends on every token of the prompt."""
    return -1.0 - (hash((prompt, token)) % 1000) / 100


def toy_argmax(prompt: TokenIds) -> int:
    return hash(prompt) % 4


def toy_score(node: Node) -> NodeScore:
    return NodeScore({t: toy_logprob(node.prompt, t) for t in node.children}, toy_argmax(node.prompt))


def plain(request: LoglikelihoodRequest) -> LoglikelihoodResponse:
    """Token by token along each row."""
    totals, greedy = [], []
    for context, continuation in request.rows:
        places = range(len(continuation))
        prompts = [context + continuation[:i] for i in places]
        totals.append(sum(toy_logprob(p, t) for p, t in zip(prompts, continuation, strict=True)))
        greedy.append(all(toy_argmax(p) == t for p, t in zip(prompts, continuation, strict=True)))
    return LoglikelihoodResponse(tuple(totals), tuple(greedy))


@settings(max_examples=60, deadline=None)
@given(asked=requests(), seed=st.integers(0, 1000))
def test_answers_equal_a_plain_reading_in_any_order(asked: list[LoglikelihoodRequest], seed: int) -> None:
    source = random.Random(seed)
    order = list(range(len(asked)))
    source.shuffle(order)
    collector = Collector(asked)
    found: dict[int, LoglikelihoodResponse] = {}
    flying: list[Node] = []
    for node in collector.nodes(order):
        flying.append(node)
        if source.random() < 0.5:  # answers come back while questions are still being asked
            done = flying.pop(source.randrange(len(flying)))
            for index, response in collector.take(done, toy_score(done)):
                assert index not in found
                found[index] = response
    source.shuffle(flying)
    for node in flying:
        found |= dict(collector.take(node, toy_score(node)))
    assert sorted(found) == sorted(order)
    for index, request in enumerate(asked):
        wanted = plain(request)
        assert found[index].greedy == wanted.greedy
        assert all(math.isclose(a, b) for a, b in zip(found[index].logprobs, wanted.logprobs, strict=True))


def test_single_token_choices_are_one_request() -> None:
    request = LoglikelihoodRequest(tuple(((1, 2, 3), (choice,)) for choice in (7, 8, 9)))
    assert question_nodes(request) == [Node((1, 2, 3), (7, 8, 9))]


def test_a_shared_beginning_is_asked_once() -> None:
    request = LoglikelihoodRequest((((1,), (5, 6)), ((1,), (5, 7)), ((1,), (5,))))
    assert question_nodes(request) == [Node((1,), (5,)), Node((1, 5), (6, 7))]


def test_a_wide_node_is_asked_in_pieces_and_put_together() -> None:
    choices = tuple(((1,), (token,)) for token in range(MOST_CHILDREN + 5))
    request = LoglikelihoodRequest(choices)
    nodes = question_nodes(request)
    assert [len(node.children) for node in nodes] == [MOST_CHILDREN, 5]
    collector = Collector([request])
    found = [answer for node in collector.nodes([0]) for answer in collector.take(node, toy_score(node))]
    assert found == [(0, plain(request))]


def test_equal_questions_in_flight_are_asked_once() -> None:
    request = LoglikelihoodRequest((((1, 2), (3,)),))
    collector = Collector([request, request])
    [node] = collector.nodes([0, 1])
    assert dict(collector.take(node, toy_score(node))) == {0: plain(request), 1: plain(request)}

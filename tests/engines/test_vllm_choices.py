"""The trie of a question's choices: every answer is the sum a plain reading gives, whatever the order."""

from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cme_bench.engines import LoglikelihoodRequest, LoglikelihoodResponse, TokenIds
from cme_bench.engines.vllm.choices import (
    MOST_CHILDREN,
    ChoiceScore,
    Collector,
    Node,
    Query,
    ScoredToken,
    Tail,
    plan_question,
    question_nodes,
)
from tests.support.tries import requests


def toy_logprob(prompt: TokenIds, token: int) -> float:
    """A log-probability that depends on every token of the prompt."""
    return -1.0 - (hash((prompt, token)) % 1000) / 100


def toy_argmax(prompt: TokenIds) -> int:
    return hash(prompt) % 4


def toy_scores(query: Query) -> dict[ScoredToken, ChoiceScore]:
    """What an engine says: of a node its children, of a tail every token."""
    places = [(query.prompt, token) for token in query.children]
    if isinstance(query, Tail):
        places += [(query.context + query.continuation[:i], t) for i, t in enumerate(query.continuation[:-1])]
    return {place: ChoiceScore(toy_logprob(*place), toy_argmax(place[0]) == place[1]) for place in places}


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
@given(asked=requests(), seed=st.integers(0, 1000), block=st.sampled_from([1, 16, 1000]))
def test_answers_equal_a_plain_reading_in_any_order(
    asked: list[LoglikelihoodRequest], seed: int, block: int
) -> None:
    """With blocks of 1 nodes are the cheaper way, with blocks of 1000 tails."""
    source = random.Random(seed)
    order = list(range(len(asked)))
    source.shuffle(order)
    collector = Collector(block)
    found: dict[int, LoglikelihoodResponse] = {}
    flying: list[Query] = []

    def take(done: Query) -> None:
        for index, request, response in collector.take(done, toy_scores(done)):
            assert index not in found and request == asked[index]
            found[index] = response

    for node in (node for index in order for node in collector.queries(index, asked[index])):
        flying.append(node)
        if source.random() < 0.5:  # answers come back while questions are still being asked
            take(flying.pop(source.randrange(len(flying))))
    source.shuffle(flying)
    for node in flying:
        assert collector
        take(node)
    assert not collector
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
    collector = Collector(16)
    found = [
        done for node in collector.queries(0, request) for done in collector.take(node, toy_scores(node))
    ]
    assert found == [(0, request, plain(request))]


def test_equal_questions_in_flight_are_asked_once() -> None:
    request = LoglikelihoodRequest((((1, 2), (3,)),))
    collector = Collector(16)
    [node] = collector.queries(0, request)
    assert list(collector.queries(1, request)) == []
    answers = list(collector.take(node, toy_scores(node)))
    assert answers == [(0, request, plain(request)), (1, request, plain(request))]


def test_a_question_of_empty_choices_is_answered_as_others_are() -> None:
    request = LoglikelihoodRequest((((1, 2), ()), ((1, 2), ())))
    collector = Collector(16)
    [node] = collector.queries(0, request)
    assert list(collector.take(node, toy_scores(node))) == [(0, request, plain(request))]


def test_the_cheaper_way_is_chosen() -> None:
    """Long choices that part at once: tails. One token more on a shared beginning: nodes."""
    context = tuple(range(64))
    apart = LoglikelihoodRequest(tuple((context, (c, 1, 2, 3, 4, 5)) for c in range(4)))
    assert plan_question(apart, 32) == [Tail(context, (c, 1, 2, 3, 4, 5)) for c in range(4)]
    together = LoglikelihoodRequest(tuple((context, (1, c)) for c in range(9)))
    assert plan_question(together, 1) == [Node(context, (1,)), Node((*context, 1), tuple(range(9)))]

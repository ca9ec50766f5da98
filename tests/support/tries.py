"""Random rows that share prefixes in every way, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from cme_bench.engines import LoglikelihoodRequest, TokenIds
from cme_bench.engines.plan import PlanLimits

LENGTH = 65  # of models with 64 positions

_token = st.integers(0, 3)  # few, so that prefixes meet by chance too
_continuations = st.one_of(
    st.lists(_token, min_size=1, max_size=1),
    st.lists(_token, min_size=1, max_size=5),
    st.lists(_token, min_size=40, max_size=40),
).map(tuple)


@st.composite
def contexts(draw: st.DrawFn) -> list[TokenIds]:
    """Contexts that grow out of each other: headers, questions, questions of questions."""
    found: list[TokenIds] = [()]
    for _ in range(draw(st.integers(1, 8))):
        parent = draw(st.sampled_from(found))
        found.append(parent + tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=12))))
    return [context for context in found if context]


@st.composite
def requests(draw: st.DrawFn) -> list[LoglikelihoodRequest]:
    """Requests that fit ``LENGTH``; some rows fill it, some choices begin with another choice."""
    grown = draw(contexts())
    asked = []
    for _ in range(draw(st.integers(1, 6))):
        context = draw(st.sampled_from(grown))[: LENGTH - 40]
        choices = draw(st.lists(_continuations, min_size=1, max_size=4))
        if draw(st.booleans()):
            choices.append(choices[0] + draw(_continuations)[:8])
        if draw(st.booleans()):
            choices.append(choices[-1][:1])
        if draw(st.booleans()):
            room = LENGTH - len(context)
            choices.append(tuple((7 * i) % 5 for i in range(room)))  # right at the limit
        rows = [(context, choice[: LENGTH - len(context)]) for choice in choices]
        if draw(st.booleans()):
            rows.append((context[:1], choices[0]))  # a context of one token
        asked.append(LoglikelihoodRequest(tuple(rows)))
    return asked


limits = st.builds(
    PlanLimits,
    pack_tokens=st.integers(1, 90),
    pack_scored=st.integers(1, 60),
    block_tokens=st.integers(0, 60),
    forward_tokens=st.integers(0, 20),
    kept_tokens=st.integers(0, LENGTH),
)

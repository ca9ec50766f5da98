"""Engines compute answers: every one takes token ids and returns text or log-likelihoods."""

from cme_bench.engines.base import (
    Engine,
    EngineStats,
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
    Sampling,
    Thought,
    TokenIds,
)

__all__ = [
    "Engine",
    "EngineStats",
    "GenerateRequest",
    "GenerateResponse",
    "LoglikelihoodRequest",
    "LoglikelihoodResponse",
    "Sampling",
    "Thought",
    "TokenIds",
]

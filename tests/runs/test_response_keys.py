"""The bytes of token ids in a key are those that earlier versions wrote: stored answers are found again."""

from __future__ import annotations

import hashlib
from array import array

import orjson

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.runs.identity import response_key

RESPONDER = {"model": "a" * 64, "adapter": "none", "dtype": "float32", "engine": "hf"}


def begun() -> hashlib._Hash:
    return hashlib.sha256(orjson.dumps(RESPONDER, option=orjson.OPT_SORT_KEYS))


def test_keys_of_choices_are_of_their_ids_as_eight_bytes_each() -> None:
    context, virtual = (1, 2, 70_000), (1, (1 << 62) + 5)
    rows = ((context, (3, 4)), (context, ()), (virtual, (5,)))
    digest = begun()
    digest.update(orjson.dumps(["loglikelihood", [(3, 2), (3, 0), (2, 1)]]))
    for ids in (context, (3, 4), (), virtual, (5,)):
        digest.update(array("q", ids).tobytes())
    assert response_key(RESPONDER, LoglikelihoodRequest(rows)) == digest.hexdigest()


def test_keys_of_texts_are_of_their_prompt_as_eight_bytes_each() -> None:
    digest = begun()
    digest.update(orjson.dumps(["generate", 8, ["x"], {"repeat": 0, "sampling": "greedy"}]))
    digest.update(array("q", (1, 2, 49_151)).tobytes())
    assert response_key(RESPONDER, GenerateRequest((1, 2, 49_151), 8, ("x",))) == digest.hexdigest()

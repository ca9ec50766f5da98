"""The identity of a stored response: the key under which it may be used again, and nothing else may."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping

import orjson

from cme_bench.engines.base import GenerateRequest, Request


def response_key(responder: Mapping[str, str], request: Request) -> str:
    """Return sha256 over the responder (model and adapter hashes, dtype, engine), the exact token ids, and
    the sampling parameters: one token, weight or setting changed is another key."""
    digest = hashlib.sha256(orjson.dumps(dict(responder), option=orjson.OPT_SORT_KEYS))
    if isinstance(request, GenerateRequest):
        settings = [
            "generate",
            request.max_new_tokens,
            list(request.stop),
            {"repeat": 0, "sampling": "greedy"},
        ]
        digest.update(orjson.dumps(settings))
        digest.update(array("q", request.prompt).tobytes())
    else:
        digest.update(orjson.dumps(["loglikelihood", [(len(c), len(k)) for c, k in request.rows]]))
        previous = None
        for context, continuation in request.rows:
            if context != previous:
                digest.update(array("q", context).tobytes())
                previous = context
            digest.update(array("q", continuation).tobytes())
    return digest.hexdigest()


def short(value: object) -> str:
    """Return a value as messages show it: of a sha256 the first eight digits."""
    text = str(value)
    return text[:8] if len(text) == 64 else text

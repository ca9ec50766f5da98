"""The identity of a stored response: the key under which it may be used again, and nothing else may."""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import orjson

from cme_bench.engines.base import GenerateRequest, Request, TokenIds


def response_key(responder: Mapping[str, str], request: Request) -> str:
    """Return sha256 over the responder (model and adapter hashes, dtype, engine), the exact token ids, and
    the sampling parameters: one token, weight or setting changed is another key."""
    digest = _begun(tuple(responder.items())).copy()
    if isinstance(request, GenerateRequest):
        settings = [
            "generate",
            request.max_new_tokens,
            list(request.stop),
            {"repeat": request.repeat, "sampling": _sampling(request)} | _thought(request) | _ends(request),
        ]
        digest.update(orjson.dumps(settings))
        digest.update(_bytes(request.prompt))
    else:
        digest.update(orjson.dumps(["loglikelihood", [(len(c), len(k)) for c, k in request.rows]]))
        previous = None
        for context, continuation in request.rows:
            if context != previous:
                digest.update(_bytes(context))
                previous = context
            digest.update(_bytes(continuation))
    for image in request.images:  # virtual ids hold but the beginning of these
        digest.update(bytes.fromhex(image.digest))
    return digest.hexdigest()


def _bytes(ids: TokenIds) -> bytes:
    """Return eight bytes for each token id, in the machine's order."""
    return struct.pack(f"{len(ids)}q", *ids)


@functools.lru_cache(maxsize=64)
def _begun(responder: tuple[tuple[str, str], ...]) -> hashlib._Hash:
    """Return the digest of what all answers of a responder have in common; to be copied."""
    return hashlib.sha256(orjson.dumps(dict(responder), option=orjson.OPT_SORT_KEYS))


def _sampling(request: GenerateRequest) -> Any:
    return "greedy" if request.sampling is None else asdict(request.sampling)


def _thought(request: GenerateRequest) -> dict[str, Any]:
    """Return what a thought adds to a key: nothing where there is none, so that older keys stay."""
    return {} if request.thought is None else {"thought": asdict(request.thought)}


def _ends(request: GenerateRequest) -> dict[str, Any]:
    """Return what further ends add to a key, likewise."""
    return {"ends": sorted(request.ends)} if request.ends else {}


def short(value: object) -> str:
    """Return a value as messages show it: of a sha256 the first eight digits."""
    text = str(value)
    return text[:8] if len(text) == 64 else text

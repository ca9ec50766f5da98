"""A tiny server of completions on this machine, with a real tiny model behind it and faults on demand."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from tests.support.local_server import answering

LENGTH = 8192
FAULTS = {"busy": 429, "broken": 500, "away": 503, "refused": 401, "bad": 400}
"""Faults that are a status; others are named where they are done."""


@dataclass
class Completions:
    """What the server answers with, and how it errs.

    ``faults``: what the next requests get in place of an answer, first come first served; ``always``: what
    is wrong with every answer. ``asked``: the bodies of completions; ``most``: most at a time.
    """

    model: Any
    tokenizer: Any
    names: tuple[str, ...] = ("tiny",)
    unlisted: tuple[str, ...] = ()
    faults: deque[str] = field(default_factory=deque)
    always: frozenset[str] = frozenset()
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    compute: threading.Lock = field(default_factory=threading.Lock)
    answered_before_gone: int | None = None

    def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": n, "max_model_len": LENGTH} for n in self.names]}

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """A completion as OpenAI's interface has it; with the extras of vLLM unless they are off."""
        prompt = body["prompt"]
        ids = self.tokenizer.encode(prompt, add_special_tokens=False) if isinstance(prompt, str) else prompt
        if "bos" in self.always and isinstance(prompt, str):
            ids = [self.tokenizer.bos_token_id, *ids]
        if "other model" in self.always or ("other ids" in self.always and not isinstance(prompt, str)):
            ids = [(i + 1) % 256 for i in ids]
        with self.compute, torch.inference_mode():
            new, row = [], list(ids)
            ends = {self.tokenizer.eos_token_id, *body.get("stop_token_ids", [])}
            text, finish = "", "length"
            for _ in range(body["max_tokens"]):
                new.append(int(self.logprobs(row)[-1].argmax()))
                row.append(new[-1])
                text = self.tokenizer.decode(new, skip_special_tokens=True)
                if new[-1] in ends or any(stop in text for stop in body.get("stop", [])):
                    finish = "stop"
                    break
            table = self.logprobs(row)
        for stop in body.get("stop", []):
            text = text.partition(stop)[0]
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": finish}
        if "logprobs" in body and "no logprobs" not in self.always:
            echoed = body.get("echo") and "no echo" not in self.always
            choice["logprobs"] = self.scores(row, 0 if echoed else len(ids), table)
        if body.get("return_token_ids") and "no ids" not in self.always:
            choice["token_ids"] = new
        n_prompt = len(ids) + ("counts" in self.always and len(self.asked) > 10)
        usage = {"prompt_tokens": n_prompt, "completion_tokens": len(new)}
        known = body["model"] if body["model"] in (*self.names, *self.unlisted) else self.names[0]
        return {"object": "text_completion", "choices": [choice], "model": known} | (
            {} if "no usage" in self.always else {"usage": usage}
        )

    def logprobs(self, row: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([row])).logits[0].log_softmax(-1)

    def scores(self, row: list[int], start: int, table: torch.Tensor) -> dict[str, Any]:
        places = range(start, len(row))
        own = [None if i == 0 else float(table[i - 1, row[i]]) for i in places]
        top = [None if i == 0 else {"top": float(table[i - 1].max()), "own": own[i - start]} for i in places]
        if "alone" in self.always and start == 0:  # each token as after a text's first one only
            fixed = self.logprobs([row[0]])[-1]
            own = [None, *(float(fixed[row[i]]) for i in places[1:])]
        if "shifted" in self.always and start == 0:
            own, top = [None, *own[2:], own[-1]], [None, *top[2:], top[-1]]
        if "nan" in self.always and start == 0:
            own = [None, *(float("nan") for _ in own[1:])]
        tokens = [self.tokenizer.decode([row[i]]) for i in places]
        return {"tokens": tokens, "token_logprobs": own, "top_logprobs": top}


class CompletionsServer(ThreadingHTTPServer):
    """Answers for ``completions`` on a free port of this machine."""

    completions: Completions
    daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: CompletionsServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        about = self.server.completions
        self.reply(500 if "no list" in about.always else 200, json.dumps(about.models()))

    def do_POST(self) -> None:
        about = self.server.completions
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with about.lock:
            about.asked.append(body)
            about.keys.add(self.headers.get("Authorization", ""))
            about.now += 1
            about.most = max(about.most, about.now)
            fault = about.faults.popleft() if about.faults else ""
            if about.answered_before_gone is not None:
                about.answered_before_gone -= 1
                fault = "drop" if about.answered_before_gone < 0 else fault
        try:
            self.answer(about, body, fault)
        finally:
            with about.lock:
                about.now -= 1

    def answer(self, about: Completions, body: dict[str, Any], fault: str) -> None:
        if fault in FAULTS:
            self.reply(FAULTS[fault], json.dumps({"error": {"message": f"it is {fault}", "code": 1}}))
        elif fault == "drop":
            self.close_connection = True
        elif fault == "garbled":
            self.reply(200, '{"choices": [{"text": "Par')
        elif fault == "html":
            self.reply(200, "<html>a proxy's page</html>", kind="text/html")
        elif fault == "empty":
            self.reply(200, json.dumps({"choices": []}))
        elif "text only" in about.always and not isinstance(body["prompt"], str):
            self.reply(422, json.dumps({"detail": "prompt: str type expected"}))
        elif "strict" in about.always and "top_k" in body:
            self.reply(400, json.dumps({"error": {"message": "unknown parameter top_k"}}))
        else:
            self.reply(200, json.dumps(about.complete(body)))

    def reply(self, status: int, text: str, kind: str = "application/json") -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def completing(about: Completions) -> Iterator[CompletionsServer]:
    """The server, answering until the block ends."""
    served = CompletionsServer(("127.0.0.1", 0), Handler)
    served.completions = about
    with answering(served):
        yield served

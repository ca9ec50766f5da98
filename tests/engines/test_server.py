"""Engine server: agreement with the transformers engine, proofs and refusals, and a server that fails."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import cme_bench
from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest, Sampling, Thought
from cme_bench.engines.hf import HFEngine
from cme_bench.engines.inbox import Given
from cme_bench.engines.server import client
from cme_bench.engines.server.address import base_url
from cme_bench.engines.server.engine import ServerEngine
from cme_bench.engines.server.likelihood import prove_likelihood
from cme_bench.engines.server.probe import probe
from cme_bench.util.errors import CmeError, UsageError
from tests.support.completions_server import Completions, CompletionsServer, completing

Make = Callable[..., CompletionsServer]
N = 6
ENDS = frozenset({271})


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
    return model, AutoTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def running(parts: tuple[Any, Any]) -> Iterator[CompletionsServer]:
    with completing(Completions(*parts)) as served:
        yield served


@pytest.fixture
def serve(running: CompletionsServer, parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Make:
    """The server with the faults that are asked for; nobody waits between tries."""
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)
    monkeypatch.delenv(client.KEY, raising=False)

    def make(*always: str, **changes: Any) -> CompletionsServer:
        running.completions = Completions(*parts, always=frozenset(always), **changes)
        return running

    return make


@contextmanager
def engine(served: CompletionsServer, tokenizer: Any, **settings: Any) -> Iterator[ServerEngine]:
    server = client.Server(served.url, **settings)
    try:
        found = probe(server, None, tokenizer)
        yield ServerEngine(server, found, tokenizer, ENDS, max_length=200)
    finally:
        server.close()


def prompts(tokenizer: Any) -> list[tuple[int, ...]]:
    return [tuple(tokenizer.encode(f"Question {n}: yes or no?")) for n in range(N)]


def generating(tokenizer: Any) -> list[GenerateRequest]:
    asked = enumerate(prompts(tokenizer))
    return [GenerateRequest(prompt, 6 + n, ("th",) if n % 2 else ()) for n, prompt in asked]


def scoring(tokenizer: Any) -> list[LoglikelihoodRequest]:
    choices = tuple(tuple(tokenizer.encode(text)) for text in (" yes", " no", "", "e"))
    return [
        LoglikelihoodRequest(tuple((prompt, choice) for choice in choices))
        for prompt in prompts(tokenizer)[:4]
    ]


@pytest.mark.parametrize("always", [(), ("no ids",), ("strict", "no ids"), ("text only", "no ids")])
def test_texts_are_those_of_the_transformers_engine(
    serve: Make, parts: tuple[Any, Any], always: tuple[str, ...]
) -> None:
    """Whatever the server takes and tells: token ids or text, with the extras of vLLM or without."""
    served = serve(*always)
    expected = dict(HFEngine(*parts, max_length=200).generate(generating(parts[1])))
    with engine(served, parts[1], concurrency=3) as ours:
        found = dict(ours.generate(generating(parts[1])))
        assert ours.served.dialect.ids is ("text only" not in always)
    same = [found[n].text == expected[n].text and found[n].n_tokens == expected[n].n_tokens for n in expected]
    assert all(same) and len(found) == N
    if not always:
        assert found == expected, "and why each ended"
        assert 1 < served.completions.most <= 3, "several at a time, and no more than asked for"


def test_thoughts_and_samples_are_asked_as_of_other_engines(serve: Make, parts: tuple[Any, Any]) -> None:
    served, close = serve(), tuple(parts[1].encode("."))
    reference = HFEngine(*parts, max_length=200)
    texts = dict(reference.generate([GenerateRequest(prompt, 20) for prompt in prompts(parts[1])]))
    common = Counter(c for r in texts.values() for c in set(r.text) if c.isascii()).most_common(1)[0][0]
    thoughts = [Thought(budget=20, start="e", end=end, opened=True, closing=close) for end in (common, "%%")]
    asked = [GenerateRequest(p, 5, thought=thoughts[n % 2]) for n, p in enumerate(prompts(parts[1]))]
    expected = dict(reference.generate(asked))
    assert len({response.thought_end for response in expected.values()}) > 1
    with engine(served, parts[1]) as ours:
        assert dict(ours.generate(asked)) == expected
        list(ours.generate([replace(asked[0], thought=None, sampling=Sampling(0.7, 0.9, 5, seed=3))]))
    sent = served.completions.asked[-1]
    assert [sent[key] for key in ("temperature", "top_p", "top_k", "seed")] == [0.7, 0.9, 5, 3]
    ends = [replace(asked[0], thought=None, ends=tuple(range(97, 123)))]
    with engine(served, parts[1]) as ours:
        assert dict(ours.generate(ends)) == dict(reference.generate(ends))
    with engine(serve("no ids"), parts[1]) as ours, pytest.raises(UsageError, match="returns no token ids"):
        list(ours.generate(asked))


def test_likelihoods_are_those_of_the_transformers_engine(serve: Make, parts: tuple[Any, Any]) -> None:
    served = serve()
    expected = dict(HFEngine(*parts, max_length=200).loglikelihood(scoring(parts[1])))
    with engine(served, parts[1]) as ours:
        prove_likelihood(ours.server, ours.served, parts[1])
        found = dict(ours.loglikelihood(scoring(parts[1])))
    for number, response in expected.items():
        assert found[number].logprobs == pytest.approx(response.logprobs, abs=1e-4)
        assert found[number].greedy == response.greedy
    assert found[0].logprobs[2] == 0.0 and found[0].greedy[2]


@pytest.mark.parametrize(
    ("always", "reason"),
    [
        ("no echo", "ignores echo"),
        ("shifted", "another log-probability in a prompt than when it generates it"),
        ("alone", "another log-probability in a prompt than when it generates it"),
        ("nan", "another log-probability in a prompt than when it generates it"),
        ("text only", "takes no token ids"),
        ("no logprobs", "gives no log-probabilities of the tokens that it generates"),
    ],
)
def test_likelihoods_that_cannot_be_proven_are_refused(
    serve: Make, parts: tuple[Any, Any], always: str, reason: str
) -> None:
    with engine(serve(always), parts[1]) as ours:
        with pytest.raises(UsageError, match=rf"{reason}.*, so its likelihoods would be wrong") as raised:
            prove_likelihood(ours.server, ours.served, parts[1])
        assert "\n" not in str(raised.value)


def test_a_run_is_refused_likelihoods_before_any_answer(
    serve: Make, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    served = serve("no echo")
    with pytest.raises(UsageError, match="ignores echo"):
        run(served, tiny_checkpoint, tmp_path / "run", tasks="cme_rte,cme_rte_ll")
    assert not list((tmp_path / "run" / "samples").iterdir()), "refused before the generated task, too"


@pytest.mark.parametrize(
    ("always", "reason"),
    [
        ("no usage", "does not report usage.prompt_tokens"),
        ("other ids", "its vocabulary is not that of MODEL"),
    ],
)
def test_a_tokenizer_that_is_not_proven_is_refused(
    serve: Make, parts: tuple[Any, Any], always: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason), engine(serve(always), parts[1]):
        pass


def test_another_tokenizer_is_refused_by_its_counts(serve: Make, parts: tuple[Any, Any]) -> None:
    other = AutoTokenizer.from_pretrained(parts[1].name_or_path)
    other.add_tokens(["France"])
    with (
        pytest.raises(UsageError, match=r"makes 24 tokens of 'The capital .* MODEL 19"),
        engine(serve(), other),
    ):
        pass


def test_what_a_server_puts_before_a_text_is_found_and_not_sent_twice(
    serve: Make, parts: tuple[Any, Any]
) -> None:
    served = serve("bos", "text only", "no ids")
    texts = prompts(parts[1])
    asked = [GenerateRequest((270, *prompt), 5) for prompt in texts[:2]]
    expected = dict(HFEngine(*parts, max_length=200).generate(asked))
    with engine(served, parts[1]) as ours:
        assert ours.served.dialect.begin == (270,)
        assert {n: r.text for n, r in ours.generate(asked)} == {n: r.text for n, r in expected.items()}
        with pytest.raises(UsageError, match="would become other token ids"):
            list(ours.generate([GenerateRequest(texts[0], 5)]))
        with pytest.raises(UsageError, match="would become other token ids"):
            list(ours.generate([GenerateRequest((270, *map(parts[1].convert_tokens_to_ids, "the")), 5)]))


def test_a_count_that_differs_in_the_middle_stops_the_run(serve: Make, parts: tuple[Any, Any]) -> None:
    with (
        engine(serve("counts"), parts[1]) as ours,
        pytest.raises(UsageError, match=r"read 23 tokens of a prompt of 22"),
    ):
        list(ours.generate(generating(parts[1])))


def test_faults_that_pass_are_tried_again(serve: Make, parts: tuple[Any, Any]) -> None:
    served = serve()
    expected = dict(HFEngine(*parts, max_length=200).generate(generating(parts[1])))
    faults = ["busy", "broken", "away", "drop", "garbled", "html", "empty"]
    with engine(served, parts[1], retries=len(faults), concurrency=1) as ours:
        served.completions.faults = deque(faults)
        assert dict(ours.generate(generating(parts[1]))) == expected
        assert not served.completions.faults


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("bad", UsageError, r"refused \(400: it is bad\)"),
        ("refused", UsageError, r"access refused \(401: .*OPENAI_API_KEY holds the key \(it is not set\)"),
        ("broken", CmeError, r"does not answer \(500: it is broken\), 3 tries; what was answered is stored"),
        ("drop", CmeError, r"does not answer \(.*\), 3 tries"),
        ("empty", CmeError, r"does not answer \(no choices in it\), 3 tries"),
        ("garbled", CmeError, r"does not answer \(no JSON"),
    ],
)
def test_faults_that_stay_are_one_line_after_what_was_answered(
    serve: Make, parts: tuple[Any, Any], fault: str, kind: type[CmeError], message: str
) -> None:
    served = serve()
    found = []
    with engine(served, parts[1], retries=2, concurrency=1) as ours:
        served.completions.faults = deque(["", "", *[fault] * 100])
        with pytest.raises(kind, match=message) as raised:
            found.extend(ours.serve(Given(generating(parts[1]))))
    assert len(found) == 2 and "\n" not in str(raised.value)
    assert type(raised.value) is kind


def test_a_server_that_comes_back_as_another_model_is_told_from_the_first(
    serve: Make, parts: tuple[Any, Any]
) -> None:
    served = serve()
    with engine(served, parts[1], concurrency=1) as ours:
        served.completions.faults = deque(["", "drop"])
        served.completions.always = frozenset({"other model"})
        with pytest.raises(CmeError, match="came back as another model than tiny was"):
            list(ours.generate(generating(parts[1])))
        served.completions.always = frozenset()
        served.completions.faults = deque(["", "drop"])
        assert len(list(ours.generate(generating(parts[1])))) == N


def test_the_key_is_sent_from_the_environment_and_told_nowhere(
    serve: Make, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    monkeypatch.setenv(client.KEY, "sk-very-secret")
    monkeypatch.setattr(sys, "argv", ["cme-bench", "run", "sk-very-secret"])
    [found] = run(served, tiny_checkpoint, tmp_path / "run")
    assert served.completions.keys == {"Bearer sk-very-secret"}
    assert not [file for file in found.folder.rglob("*") if file.is_file() and b"secret" in file.read_bytes()]
    served.completions.faults = deque(["refused"] * 9)
    with pytest.raises(UsageError, match=r"holds the key \(the key in it\)"):
        run(served, tiny_checkpoint, tmp_path / "other")
    monkeypatch.setenv(client.KEY, "sk-ü")
    with pytest.raises(UsageError, match="holds characters that a key cannot have"):
        run(served, tiny_checkpoint, tmp_path / "other")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("https://host/", "https://host/v1"),
        ("http://host:1/v1/", "http://host:1/v1"),
        ("http://host/v1/completions", "http://host/v1"),
        ("http://host/team/api", "http://host/team/api"),
        ("http://[::1]:80", "http://[::1]:80/v1"),
    ],
)
def test_addresses_that_are_meant(address: str, expected: str) -> None:
    assert base_url(address) == expected


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("host:8000", "write http://HOST:PORT"),
        ("ftp://host", "write http://HOST:PORT"),
        ("http://a b:1", "write http://HOST:PORT"),
        ("http://", "write http://HOST:PORT"),
        ("http://host:99999", "no address"),
        ("http://user:hunter2@host", "OPENAI_API_KEY"),
        ("http://host/v1?key=hunter2", "OPENAI_API_KEY"),
        ("http://host/v1/chat/completions", "chat prompts are no token ids"),
    ],
)
def test_addresses_that_are_refused_without_their_secrets(address: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as raised:
        base_url(address)
    assert "hunter2" not in str(raised.value)


def run(served: CompletionsServer, model: Path, out: Path, **changes: Any) -> list[cme_bench.Run]:
    asked: dict[str, Any] = {"tasks": "cme_rte", "data": "mini", "limit": 5, "progress": False} | changes
    return cme_bench.evaluate(model, engine="server", server=served.url, out=out, **asked)


def test_options_that_a_server_decides_are_refused(
    serve: Make, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    served = serve(names=("one", "two"))
    for changes, reason in (
        ({}, "serves one, two: name one with --server-model"),
        ({"server_model": "tow"}, "does not list it, and one answers"),
        ({"server_model": "two", "quantize": "4bit"}, "--quantize 4bit: a server has loaded its model"),
        ({"server_model": "two", "dtype": "float32"}, "--dtype float32: a server computes in its own type"),
        ({"server_model": "two", "settings": {"max_length": 9000}}, "takes 8190 tokens at most"),
        ({"server_model": "two", "adapters": "teamlora-demo"}, "the adapter|trained on|shape|teamlora-demo"),
    ):
        with pytest.raises(UsageError, match=reason):
            run(served, tiny_checkpoint, tmp_path / "run", **changes)
    for settings, reason in (
        ({"engine": "server"}, "--engine server needs --server URL"),
        ({"server": served.url}, "--server is for --engine server, not for hf"),
        ({"server_concurrency": 2}, "--server-concurrency is for --engine server"),
    ):
        with pytest.raises(UsageError, match=reason):
            cme_bench.evaluate(tiny_checkpoint, progress=False, **settings)


def test_a_server_may_answer_as_models_that_it_does_not_list(serve: Make, parts: tuple[Any, Any]) -> None:
    """As transformers' own does, whose list is that of the hub's cache, and fails where there is none."""
    for always, unlisted in ((), ("/models/tiny@main",)), (("no list",), ("/models/tiny@main",)):
        server = client.Server(serve(*always, unlisted=unlisted).url, retries=0)
        try:
            assert probe(server, "/models/tiny@main", parts[1]).name == "/models/tiny@main"
        finally:
            server.close()
    with pytest.raises(UsageError, match="lists no models: name one"), engine(serve("no list"), parts[1]):
        pass


def test_a_run_whose_server_goes_resumes_on_another_address(
    serve: Make, parts: tuple[Any, Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    served = serve(answered_before_gone=10 + 3)
    few = {"settings": {"retries": 1}, "server_concurrency": 1}
    with pytest.raises(CmeError, match="the same command goes on"):
        run(served, tiny_checkpoint, out, **few)
    stored = (out / "samples" / "cme_rte.jsonl").read_bytes().splitlines()
    assert len(stored) == 3
    with completing(Completions(*parts)) as second:
        [resumed] = run(second, tiny_checkpoint, out, **few)
        assert len(second.completions.asked) == 10 + 2, "three answers were there"
        [whole] = run(second, tiny_checkpoint, tmp_path / "whole", **few)
    assert resumed.scores == whole.scores
    identity = [
        orjson.loads((each.folder / "run.json").read_bytes())["identity"] for each in (resumed, whole)
    ]
    assert identity[0] == identity[1] and identity[0]["engine"] == "server"

"""The transformers engine: any causal LM that transformers can load, with or without a PEFT adapter."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from cme_bench.engines.base import (
    Engine,
    EngineStats,
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
    Request,
    Response,
)
from cme_bench.engines.hf import generate as generation
from cme_bench.engines.hf import loglikelihood as scoring
from cme_bench.engines.hf.alone import SeenSession, adapter_positions, alone_session, why_alone
from cme_bench.engines.hf.batching import (
    TokenBudget,
    base_size,
    default_tokens_per_batch,
    free_memory,
    plan_limits,
    run_batches,
)
from cme_bench.engines.hf.forward import CausalForward, base_model, max_positions
from cme_bench.engines.hf.images import Images
from cme_bench.engines.hf.joined_decoding import (
    Group,
    JoinedPrefixes,
    JoinedSession,
    join_groups,
    prefix_packs,
)
from cme_bench.engines.hf.pack_forward import PackForward, Pending, Reads, finished_rows, run_packs
from cme_bench.engines.hf.piece_products import AS_ASKED, NO_LAYERS, ONLY_A_GPU, OTHER_NUMBERS
from cme_bench.engines.hf.prefix_decoding import PrefixSession
from cme_bench.engines.hf.seeing import why_seen_alone
from cme_bench.engines.hf.sharing import why_rowwise, windows
from cme_bench.engines.hf.static_decoding import StaticSession, Stepper
from cme_bench.engines.hf.trials import caches, pads
from cme_bench.engines.hf.work import DeviceTimer, Work
from cme_bench.engines.inbox import Inbox, batch_by_batch
from cme_bench.engines.kept_plans import KeptPlans
from cme_bench.engines.packs import Pack, PackSequence
from cme_bench.engines.plan import chain_packs, pack_sequences, plan_groups
from cme_bench.engines.reader import ImageReader
from cme_bench.engines.stopping import end_token_ids
from cme_bench.engines.thoughts import Legs
from cme_bench.util import memory as resident_memory
from cme_bench.util.devices import computing_device, devices_of, is_spread, moved
from cme_bench.util.errors import CmeError
from cme_bench.util.exact_logits import NARROW
from cme_bench.util.float32_pieces import BY_PIECES
from cme_bench.util.notes import Note, unheard
from cme_bench.util.phases import phase

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ResultT = TypeVar("ResultT")

ROWWISE = "rowwise"
"""The verdict why no prefixes are shared."""
GPU_TARGET = 512
"""A step of generation takes a GPU about as long for a few sequences as for many."""
_PACKS_TOGETHER = 4
"""Packs that small tasks fill together: of two, one is often cut short by the next task's."""
_BATCHES_TOGETHER = 4
"""Batches of texts that tasks fill together, where steps have fixed shapes: so they are of like rows."""
_FEW_STEPS = 8
"""Steps that a short answer takes, the eager ones of new shapes counted as what they cost."""


class HFEngine(Engine):
    """Compute with a loaded transformers model.

    Likelihoods share every common prefix (``cme_bench.engines.plan``) where the model allows it. A batch that
    ran out of memory counts in ``stats.model_seconds`` only.

    Args:
        model: A causal LM or a PeftModel around one; set to eval mode, and moved when ``device`` is given.
        max_length: In tokens; by default one more than the model's config allows positions, less those that
            an adapter takes for virtual tokens.
        tokens_per_batch: Bounds rows x padded length of a batch; by default 4096 on CPU, and chosen from the
            free memory on CUDA.
        plain: Compute every row alone, the slow and obvious way.
        kept_tokens: Bounds the prefix whose keys and values are kept (default: ``max_length``); a longer one
            is computed again.
        reader: Reads the images of requests; needed where they have some.
        wide: Whether hidden states of a 16-bit model are float32, where its code allows it.
        pieces: Whether products of a float32 model are computed by bfloat16 pieces, as exactly, where weights
            are bfloat16's numbers; by default on a GPU.
        verdicts: What trials of this model with this adapter found, by name; filled here. Other engines of
            both can be given them, and try nothing again.
        positions: Whether the base model takes positions that count from 0, where that was tried already.
        plans: Packs that other engines were asked; those of this one are added.
        forward: What calls ``model``, of text alone and as ``wide`` and ``pieces`` say, where it is there.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        tokens_per_batch: int | None = None,
        device: str | torch.device | None = None,
        plain: bool = False,
        kept_tokens: int | None = None,
        static: bool | None = None,
        note: Note = unheard,
        reader: ImageReader | None = None,
        verdicts: dict[str, Any] | None = None,
        wide: bool = True,
        pieces: bool | None = None,
        positions: bool | None = None,
        plans: KeptPlans | None = None,
        forward: CausalForward | None = None,
    ) -> None:
        self._plans = KeptPlans(0) if plans is None else plans
        self.model = model.eval() if device is None else moved(model.eval(), torch.device(device))
        self.tokenizer = tokenizer
        base = base_model(model)
        self.device: torch.device = computing_device(base.get_input_embeddings())
        self.dtype: torch.dtype = base.dtype
        self.images = None if reader is None else Images(model, reader, self.device)
        self._verdicts = {} if verdicts is None else verdicts
        self._forward = forward or CausalForward(
            model,
            self.device,
            self.images,
            wide=wide,
            pieces=pieces,
            positions=positions,
            verdicts=self._verdicts,
        )
        self._tell_of_products(note)
        if max_length is None:
            max_length = max_positions(base.config) - adapter_positions(model) + 1
        self.max_length = max_length
        if tokens_per_batch is None:
            size = 4 if wide else self.dtype.itemsize
            tokens_per_batch = default_tokens_per_batch(base.config, self.device, size)
        self.budget = TokenBudget(tokens_per_batch)
        self.target_in_flight = 1 if self.device.type == "cpu" else GPU_TARGET
        free = free_memory(self.device)
        size = self._verdict("size", lambda: base_size(base))
        self.limits = plan_limits(base.config, self.device, self.budget.tokens, size, free)
        self.ahead = 0 if self.device.type == "cpu" else 1
        self.together = _PACKS_TOGETHER * self.limits.pack_tokens * self.ahead  # tokens: batches are joined
        self.limits.kept_tokens = self.max_length if kept_tokens is None else kept_tokens
        self.plain = plain
        self._static = self.device.type == "cuda" if static is None else static
        self._note = note
        self.stats = EngineStats()
        self._attention = str(getattr(base.config, "_attn_implementation", "unknown"))
        eos = getattr(getattr(base, "generation_config", None), "eos_token_id", None)
        self._decoder = generation.Decoder(tokenizer, end_token_ids(eos, tokenizer))

    def _tell_of_products(self, note: Note) -> None:
        """Find how products are computed, before memory is planned; note a GPU that is slowed."""
        found = self._forward.pieces
        because = None if found is None else found.plain_because
        if because and because not in {AS_ASKED, ONLY_A_GPU, NO_LAYERS, OTHER_NUMBERS}:
            note(f"products are computed in plain float32, which is slower: {because}")
        layers = self._forward.wide_layers
        if layers is not None and layers.no_halves_because:
            note(f"weights become float16 at every product, which is slower: {layers.no_halves_because}")

    def serve(self, inbox: Inbox) -> Iterator[tuple[int, Response]]:
        """As ``Engine.serve``, batch by batch.

        Likelihoods come as packs finish, the longest requests first; texts as batches finish, prompts that
        share a prefix together.
        """
        started = time.perf_counter()
        try:
            yield from batch_by_batch(inbox, self._answer, self._is_enough)
        finally:
            self.stats.add("serving_seconds", time.perf_counter() - started)

    def _is_enough(self, requests: Sequence[Request]) -> bool:
        """Tell whether requests fill so many packs, or batches of texts, that more would not make them
        cheaper."""
        if isinstance(requests[0], GenerateRequest):
            texts = cast("Sequence[GenerateRequest]", requests)
            if self._stepper is None or any(request.images for request in texts):
                return True
            return sum(len(r.prompt) + r.n_new for r in texts) >= _BATCHES_TOGETHER * self.budget.tokens
        if not self.together:
            return True
        waiting = cast("Sequence[LoglikelihoodRequest]", requests)
        tokens = (len(r.prompt) + sum(len(choice) for _, choice in r.rows) for r in waiting)
        return sum(tokens) >= self.together

    def _answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Response]]:
        """Answer one batch, which is of one kind; numbers are indices in it."""
        self._expect(requests)
        _ = self._forward.narrow_because  # its trial comes before a model's attention is taken over
        if isinstance(requests[0], GenerateRequest):
            return self._generate(cast("Sequence[GenerateRequest]", requests))
        return self._loglikelihood(cast("Sequence[LoglikelihoodRequest]", requests))

    def _expect(self, requests: Sequence[Request]) -> None:
        """Know the images of ``requests``. CmeError for images that nothing reads."""
        if self.images is not None:
            self.images.expect(requests)
            self.images.apart = self.alone_because is not None
        elif any(request.images for request in requests):
            raise CmeError("requests have images, but the engine was given nothing that reads them")

    def _loglikelihood(
        self, requests: Sequence[LoglikelihoodRequest]
    ) -> Iterator[tuple[int, LoglikelihoodResponse]]:
        rows = scoring.plan_rows(requests)
        for index, response in scoring.collect_responses(requests, self._scored(rows)):
            self.stats.count(requests[index], response)
            yield index, response

    def _scored(
        self, rows: Sequence[scoring.ScoringRow]
    ) -> Iterator[tuple[scoring.ScoringRow, scoring.RowScore]]:
        seen = [row for row in rows if row.has_images] if self._seen_alone else []
        if seen:
            batches = (run_batches([row], self.budget, self._score_seen) for row in seen)
            others = [row for row in rows if not row.has_images]
            return itertools.chain(itertools.chain.from_iterable(batches), self._scored_blind(others))
        return self._scored_blind(rows)

    def _scored_blind(
        self, rows: Sequence[scoring.ScoringRow]
    ) -> Iterator[tuple[scoring.ScoringRow, scoring.RowScore]]:
        """Score rows whose images, if they have any, stand in the place of their virtual ids."""
        if self.alone_because:
            batches = (run_batches([row], self.budget, self._score) for row in rows)
            return itertools.chain.from_iterable(batches)
        if self.rowwise_because:
            return run_batches(rows, self.budget, self._score)
        compute = functools.partial(self._score_pack, PackForward(self._forward))
        planned = self._plans.packs([(row.context, row.continuation) for row in rows], self.limits)
        packs = itertools.chain(pack_sequences(planned, self.limits), self._meanwhile())
        return finished_rows(rows, run_packs(packs, self.limits, compute, self.ahead))

    def _meanwhile(self) -> Iterator[Any]:
        """Yield nothing: when a pack is asked for here, all are started, and a device computes the last."""
        if self.meanwhile is not None:
            self.meanwhile()
        yield from ()

    @functools.cached_property
    def rowwise_because(self) -> str | None:
        """Return why no prefixes are shared; None if they are."""
        if self.alone_because:
            return self.alone_because
        if self.plain:
            return "asked for"
        return self._verdict(ROWWISE, lambda: why_rowwise(self._forward, self.max_length))

    @functools.cached_property
    def alone_because(self) -> str | None:
        """Return why rows are computed by themselves, as PEFT does; None if they may stand beside others."""
        return self._verdict("alone", lambda: why_alone(self.model))

    @property
    def _seen_alone(self) -> bool:
        """Tell whether rows with images are computed by themselves, if there are any in work."""
        return self.images is not None and self.images.first is not None and bool(self.seen_because)

    @functools.cached_property
    def seen_because(self) -> str | None:
        """Return why rows with images go from pixels through the model's own forward, one by one; None if
        images stand in the place of their virtual ids. Asked when images are in work."""
        images, shares = self.images, self.rowwise_because is None
        assert images is not None
        if self.plain:
            return "asked for"
        found = self._verdict(
            "seen", lambda: why_seen_alone(self._forward, images, self.max_length, shares=shares)
        )
        if found and adapter_positions(self.model):
            raise CmeError(
                f"the adapter puts tokens of its own before a prompt, and {found}: neither way computes both"
            )
        return found

    @property
    def logits(self) -> str:
        """Return the type that logits are known to: float32 and wider, or what the model rounded them to."""
        widest = torch.promote_types(self.dtype, torch.float32)
        return str(self.dtype if self._forward.rounded else widest).removeprefix("torch.")

    @functools.cached_property
    def _by_length(self) -> bool:
        """Tell whether all rows of a batch must be equally long."""
        return self.alone_because is None and not self._verdict("pads", lambda: pads(self._forward))

    @functools.cached_property
    def _alone(self) -> generation.Sessions:
        """Make what decodes a batch of rows that share nothing."""
        trusted = self._verdict("caches", lambda: caches(self._forward))
        kind = generation.CacheSession if trusted else generation.RecomputingSession
        return generation.for_any(functools.partial(kind, self._forward))

    def _verdict(self, name: str, trial: Callable[[], ResultT]) -> ResultT:
        """Return what a trial found; it is made once."""
        if name not in self._verdicts:
            with phase("trials"):
                self._verdicts[name] = trial()
        return cast("ResultT", self._verdicts[name])

    def _score_pack(self, run: PackForward, pack: Pack | PackSequence) -> Pending:
        with self._measured():
            timer = DeviceTimer(self.device)
            pending = run(pack)
            timer.stop()
        self._computed(pack.n_tokens, scored=len(pack.reads[0]))
        return functools.partial(self._waited, pending, timer)

    def _waited(self, pending: Pending, timer: DeviceTimer) -> Reads:
        with self._measured():
            reads = pending()
            self.stats.add("device_seconds", timer.seconds())
        return reads

    def _computed(self, tokens: int, scored: int) -> None:
        """Count positions that went through the network, and those whose logits were needed."""
        self.stats.tokens_computed += tokens
        self.stats.add("flops", self._work.flops(tokens, scored))

    @functools.cached_property
    def _work(self) -> Work:
        return self._verdict("work", lambda: Work.of(self.model))

    def _score_seen(self, rows: Sequence[scoring.ScoringRow]) -> list[scoring.RowScore]:
        [row] = rows
        with self._measured():
            score = scoring.score_seen(self._forward, row)
        self._computed(row.n_input, scored=len(row.continuation))
        return [score]

    def _score(self, rows: Sequence[scoring.ScoringRow]) -> list[scoring.RowScore]:
        with self._measured():
            if self._by_length:
                scores = scoring.score_by_length(self._forward, rows)
            else:
                scores = scoring.score_rows(self._forward, rows, alone=self.alone_because is not None)
        computed = sum(row.n_input for row in rows)
        self._computed(computed, scored=sum(len(row.continuation) for row in rows))
        if not self._by_length:
            self.stats.tokens_padding += len(rows) * max(row.n_input for row in rows) - computed
        return scores

    def _generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GenerateResponse]]:
        for rows, session in self._generation_groups(requests):
            decode = functools.partial(self._decode, session)
            for row, response in run_batches(rows, self.budget, decode):
                self.stats.count(row.request, response)
                yield row.index, response

    def _generation_groups(
        self, requests: Sequence[GenerateRequest]
    ) -> Iterator[tuple[list[generation.GenerationRow], generation.Sessions]]:
        """Yield rows that are decoded after kept prefixes, and what decodes a batch of them."""
        indices = list(range(len(requests)))
        if self._seen_alone:
            for index in (i for i in indices if requests[i].images):
                yield (
                    generation.plan_generation(requests, [index]),
                    generation.for_any(functools.partial(SeenSession, self._forward)),
                )
            indices = [i for i in indices if not requests[i].images]
        if self.alone_because:
            for index in indices:
                session = functools.partial(alone_session(self.model), self._forward)
                yield generation.plan_generation(requests, [index]), generation.for_any(session)
            return
        if self.rowwise_because:
            if indices:
                yield generation.plan_generation(requests, indices), self._alone
            return
        for joined in self._joined_groups(requests, indices):
            if len(joined) > 1:
                yield self._joined(requests, joined)
                continue
            [(together, prefix)] = joined
            rows = generation.plan_generation(requests, together, prefix)
            if self._stepper is not None:
                rows = generation.most_steps_first(rows)
            run = PackForward(self._forward)
            if not prefix:
                yield rows, self._alone if self._stepper is None else self._session(run, 0)
                continue
            packs = chain_packs(requests[together[0]].prompt[:prefix], self.limits)
            for _ in run_packs(packs, self.limits, functools.partial(self._score_pack, run)):
                pass
            yield rows, self._session(run, prefix)

    def _session(self, run: PackForward, prefix: int) -> generation.Sessions:
        """Return what decodes a batch after the first ``prefix`` tokens that ``run`` keeps."""
        if self._stepper is None:
            return generation.for_any(functools.partial(PrefixSession, self._forward, run.kept, prefix))
        return generation.for_any(
            functools.partial(StaticSession, self._forward, run.kept, prefix, self._stepper)
        )

    def _joined_groups(
        self, requests: Sequence[GenerateRequest], indices: Sequence[int]
    ) -> Iterator[list[Group]]:
        """Yield groups of requests that share a prefix, those of several images together.

        Where steps have fixed shapes, a group of texts costs steps of its own, each as much as a forward.
        """
        limits, images = self.limits, any(requests[i].images for i in indices)
        if self._stepper is not None and not images:
            limits = replace(limits, forward_tokens=_FEW_STEPS * limits.forward_tokens)
        groups = [
            ([indices[i] for i in group], prefix)
            for group, prefix in plan_groups([requests[i].prompt for i in indices], limits)
        ]
        config = base_model(self.model).config.get_text_config(decoder=True)
        if any(windows(config)) or not images:
            yield from ([group] for group in groups)
            return
        sizes = [
            max(len(requests[i].prompt) - prefix + requests[i].n_new for i in group)
            for group, prefix in groups
        ]
        most = self.limits.pack_tokens if self.ahead else self.budget.tokens
        yield from join_groups(groups, sizes, tokens=self.budget.tokens, most=most)

    def _joined(
        self, requests: Sequence[GenerateRequest], groups: Sequence[Group]
    ) -> tuple[list[generation.GenerationRow], generation.Sessions]:
        """Compute the prefixes of groups side by side; return their rows, and what decodes them together."""
        prefixes = JoinedPrefixes()

        def compute(pack: Pack) -> Pending:
            run = PackForward(self._forward)
            pending = self._score_pack(run, pack)
            prefixes.add(pack, run.kept)
            return pending

        first = [requests[members[0]].prompt[:prefix] for members, prefix in groups]
        for _ in run_packs(prefix_packs(first, self.limits.pack_tokens), self.limits, compute):
            pass
        rows = [
            row
            for owner, (members, prefix) in enumerate(groups)
            for row in generation.plan_generation(requests, members, prefix, owner)
        ]

        def session(batch: Sequence[generation.GenerationRow]) -> generation.DecodingSession:
            return JoinedSession(self._forward, prefixes, [row.owner for row in batch])

        return generation.longest_first(rows), session

    @functools.cached_property
    def _stepper(self) -> Stepper | None:
        """Return what holds the steps of fixed shapes; None where they are not asked for or have none.

        A window moves with every token, and what lies on several devices has no one graph.
        """
        config = base_model(self.model).config.get_text_config(decoder=True)
        if not self._static or self._forward.spread or any(windows(config)):
            return None
        return Stepper(self._forward, self._note, self.limits.pack_tokens)

    def _decode(
        self, session: generation.Sessions, rows: Sequence[generation.GenerationRow]
    ) -> list[GenerateResponse]:
        """Return the whole responses of a batch, leg after leg."""
        text = functools.partial(self._decoder.text, special=True)
        works = [Legs(row.request, text) for row in rows]
        responses: dict[int, GenerateResponse] = {}
        while waiting := [i for i in range(len(rows)) if i not in responses]:
            legs = [
                generation.GenerationRow(rows[i].index, works[i].leg, rows[i].prefix, rows[i].owner)
                for i in waiting
            ]
            for i, leg, response in zip(waiting, legs, self._decode_legs(session, legs), strict=True):
                if (whole := works[i].take(leg.tokens, response)) is not None:
                    responses[i] = whole
        return [responses[i] for i in range(len(rows))]

    def _decode_legs(
        self, session: generation.Sessions, rows: Sequence[generation.GenerationRow]
    ) -> list[GenerateResponse]:
        positions = generation.Positions()
        with self._measured():
            own = session is self.__dict__.get("_alone")  # no trial of what this batch does not use
            if own and self._by_length:
                responses = self._decoder.decode_by_length(rows, session, positions)
            else:
                responses = self._decoder.decode_batch(rows, session(rows), positions)
        self._computed(positions.computed, scored=sum(response.n_tokens for response in responses))
        self.stats.tokens_padding += positions.padding
        self.stats.add("device_seconds", sum(timer.seconds() for timer in positions.timers))
        return responses

    def describe(self) -> dict[str, str]:
        """Return engine, dtype, device, attention, the type of the logits and the versions that compute."""
        import transformers

        device = str(self.device)
        if self.device.type == "cuda":
            device = f"{device} ({torch.cuda.get_device_name(self.device)})"
        if is_spread(base_model(self.model)):
            device = f"{', '.join(devices_of(base_model(self.model)))}; rows begin on {device}"
        return {
            "engine": "hf",
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": device,
            "attention": self._attention,
            "logits": self.logits,
            **self._describe_states(),
            **self._describe_products(),
            "prefixes": f"not shared: {self.rowwise_because}" if self.rowwise_because else "shared",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **self._describe_images(),
        }

    def _describe_states(self) -> dict[str, str]:
        """Return the type of a 16-bit model's hidden states, and why it is not float32."""
        if self.dtype not in NARROW:
            return {}
        because = self._forward.narrow_because
        states = str(self._forward.states).removeprefix("torch.")
        return {"states": f"{states}: {because}" if because else states}

    def _describe_products(self) -> dict[str, str]:
        """Return how a float32 model's products are computed, where that is a question."""
        found = self._forward.pieces
        if found is None or found.plain_because == ONLY_A_GPU:
            return {}
        because = found.plain_because
        return {"products": f"float32: {because}" if because else BY_PIECES}

    def _describe_images(self) -> dict[str, str]:
        """Return how images are read and computed, where the model takes some."""
        if self.images is None:
            return {}
        how = "none asked"
        if "seen_because" in self.__dict__:
            how = f"alone: {self.seen_because}" if self.seen_because else "each computed once"
        return {
            "images": how,
            "image_processor": self.images.reader.backend,
        }

    @contextlib.contextmanager
    def _measured(self) -> Iterator[None]:
        """Count the time and the memory of what happens within: starting work, or waiting for its results."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stats.model_seconds += time.perf_counter() - started
            on_cuda = self.device.type == "cuda"
            peak = torch.cuda.max_memory_allocated(self.device) if on_cuda else resident_memory.peak()
            self.stats.peak_memory_bytes = max(self.stats.peak_memory_bytes, peak)

"""Train smollava's projector: LLaVA's first stage, with tower and language model frozen.

On a GPU, and on a CPU, where it is rough::

    cd experiments/smollava
    python train_projector.py --minutes 6 --workers 12 --out projector.safetensors
    python train_projector.py --steps 60 --batch 4 --pool 200 --variants 1 --out projector.safetensors

Pictures: easy-VQA's and scikit-learn's digits for training, Noto's emoji alone and in scenes, Noto's flags.
They are asked about in the wordings of ``cme_mm`` and in others, and captioned. Twemoji, the scenes of
``cme_mm`` and its test pictures are never seen. The tower's features are computed once; the questions of a
picture share it.

The last lines of the output are shares of right answers by likelihood: about pictures of other seeds in
Noto's style by kind of question, and of the name among four, in Noto's style and in Twemoji's.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import captions
import numpy as np
import torch
from packs import IMAGE_TOKENS, Packs, Stream, pack, segment
from pictures import MIRRORED, MOVED, TONED, Pool, moved, pixels, pools, toned
from questions import Asked, Questions
from safetensors.torch import load_file, save_file
from safetensors.torch import save as encoded
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader

from cme_bench.models.smollava.tower import MEAN, SIZE, STD, VISION_CONFIG, WIDTH
from cme_bench.tasks.made.art import Art, Thing, read_art
from cme_bench.tasks.made.packages import EASY_VQA, NOTO, TWEMOJI
from cme_bench.tasks.made.scenes import draw_one, shuffled
from cme_bench.util.files import write_bytes


class Frozen:
    """The tower and the language model, and the pictures that they take."""

    def __init__(self, tower: Path, language_model: Path, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionConfig, CLIPVisionModel

        config = CLIPVisionConfig(**{k: v for k, v in VISION_CONFIG.items() if k != "model_type"})
        self.tower = CLIPVisionModel(config)
        self.tower.load_state_dict(load_file(tower))
        self.tower = self.tower.to(device, dtype).eval().requires_grad_(False)
        self.lm = AutoModelForCausalLM.from_pretrained(language_model, dtype=dtype).to(device).eval()
        self.lm.requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(language_model)
        self.device, self.dtype = device, dtype
        self.mean = torch.tensor(MEAN, device=device).reshape(3, 1, 1)
        self.std = torch.tensor(STD, device=device).reshape(3, 1, 1)

    @torch.no_grad()
    def features(self, pictures: torch.Tensor, changes: frozenset[str] = frozenset()) -> torch.Tensor:
        """Return the tower's features (N, 256, width) of pictures (N, 3, side, side) as the processor
        has them, changed by chance in the ways of ``changes`` first."""
        values = pictures.to(self.device).float()
        if values.shape[-1] != SIZE:
            values = F.interpolate(values, (SIZE, SIZE), mode="bicubic", antialias=True).round().clamp(0, 255)
        values = values / 255
        if changes & {MIRRORED, MOVED}:
            values = moved(values, by=0.3 if MOVED in changes else 0.8, mirrored=MIRRORED in changes)
        if TONED in changes:
            values = toned(values)
        values = ((values - self.mean) / self.std).to(self.dtype)
        hidden = self.tower(values, output_hidden_states=True).hidden_states[-2]
        return hidden[:, 1:]


class Projector(nn.Module):
    """LLaVA's: two linear layers with GELU between them."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(WIDTH, out), nn.Linear(out, out)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of features."""
        return self.linear_2(F.gelu(self.linear_1(features)))


def losses_of(frozen: Frozen, projector: Projector, features: torch.Tensor, packs: Packs) -> torch.Tensor:
    """Return the loss of each answer, (answers,): the mean over its tokens."""
    device = frozen.device
    ids, place, weight, answer, is_image = (
        tensor.to(device, non_blocking=True)
        for tensor in (packs.ids, packs.place, packs.weight, packs.answer, packs.is_image)
    )
    embedded = frozen.lm.get_input_embeddings()(ids)
    embedded = embedded.masked_scatter(is_image[..., None], projector(features.float()).to(embedded.dtype))
    hidden = frozen.lm.model(
        inputs_embeds=embedded, attention_mask=packs.mask(device), position_ids=place, use_cache=False
    ).last_hidden_state
    wanted = weight[:, 1:] > 0
    logits = frozen.lm.lm_head(hidden[:, :-1][wanted]).float()
    losses = F.cross_entropy(logits, ids[:, 1:][wanted], reduction="none") * weight[:, 1:][wanted]
    return torch.zeros(packs.answers, device=device).index_add(0, answer[:, 1:][wanted], losses)


class Features:
    """The features of all pictures, on the device, computed before the first step: the tower is frozen."""

    def __init__(self, frozen: Frozen, sources: Sequence[Pool], together: int) -> None:
        self.tables = {pool.name: self._table(frozen, pool, together) for pool in sources}

    @staticmethod
    def _table(frozen: Frozen, pool: Pool, together: int) -> torch.Tensor:
        """Return (variants, N, 256, width): the pictures as they are first, then changed by chance."""
        count, kinds = len(pool.pictures), 1 + pool.variants
        table = torch.empty(kinds, count, IMAGE_TOKENS, WIDTH, dtype=frozen.dtype, device=frozen.device)
        for kind in range(kinds):
            for start in range(0, count, together):
                some = pool.pictures[start : start + together]
                changes = pool.changes if kind else frozenset[str]()
                table[kind, start : start + len(some)] = frozen.features(some, changes)
        return table

    def of(self, rng: random.Random, pictures: Sequence[tuple[str, int]]) -> torch.Tensor:
        """Return the features of pictures in their order, each in a variant drawn by chance,
        (N, 256, width)."""
        parts: list[torch.Tensor] = []
        order: list[int] = []
        for name, table in self.tables.items():
            rows = [i for i, (pool, _) in enumerate(pictures) if pool == name]
            kinds = [int(rng.random() * len(table)) for _ in rows]
            order += rows
            parts.append(table[kinds, [pictures[i][1] for i in rows]])
        places = torch.tensor(np.argsort(order), device=parts[0].device)
        return torch.cat(parts)[places]


def train(
    frozen: Frozen, sources: Sequence[Pool], batches: Iterator[Packs], options: argparse.Namespace
) -> tuple[Projector, list[torch.Tensor]]:
    """Train for ``steps`` steps or ``minutes`` minutes: AdamW, warm-up, cosine, as LLaVA's first stage."""
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    projector = Projector(frozen.lm.config.hidden_size).to(frozen.device)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=options.lr, weight_decay=0.0)
    start = time.perf_counter()
    kept = Features(frozen, sources, 128)
    print(f"features: {time.perf_counter() - start:.0f} s", flush=True)
    start, losses = time.perf_counter(), list[torch.Tensor]()
    while (spent := _spent(options, start, len(losses))) < 1:
        rate = min(1.0, spent / 0.03 + 1e-3) * 0.5 * (1 + np.cos(np.pi * spent))
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate
        packs = next(batches)
        loss = losses_of(frozen, projector, kept.of(rng, packs.pictures), packs).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        if len(losses) in (1, 5, 20) or len(losses) % 100 == 0:
            took = time.perf_counter() - start
            print(f"step {len(losses)}  {took:.0f} s  loss {mean(losses[-20:]):.3f}", flush=True)
            save(projector, losses, options)
    return projector, losses


def save(projector: Projector, losses: Sequence[torch.Tensor], options: argparse.Namespace) -> dict[str, Any]:
    """Write the projector as it is by now, whole or not at all; return what its file says of the training."""
    record = {name: getattr(options, name) for name in ("batch", "each", "seed", "lr", "pool", "variants")}
    record |= {"steps": len(losses), "last_loss": round(mean(losses[-20:]), 4)}
    state = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in projector.state_dict().items()
    }
    write_bytes(options.out, encoded(state, metadata={"training": json.dumps(record)}), to_disk=False)
    return record


def _spent(options: argparse.Namespace, start: float, steps: int) -> float:
    """Return the share of the training that is over."""
    if options.minutes:
        return (time.perf_counter() - start) / (60 * options.minutes)
    return float(steps / options.steps)


def mean(losses: Sequence[torch.Tensor]) -> float:
    """Return the mean of losses, for which a device is waited for."""
    return float(torch.stack(list(losses)).mean())


@torch.no_grad()
def right(frozen: Frozen, projector: Projector, features: torch.Tensor, head: str, asked: Asked) -> bool:
    """Return whether the right answer about a picture is the most likely one, as lm-eval's ``acc`` counts."""
    packs = pack(
        frozen.tokenizer, [("", 0)], [head], [[segment(head, asked, choice) for choice in asked.choices]]
    )
    losses = losses_of(frozen, projector, features, packs)
    lengths = [len(frozen.tokenizer(segment(head, asked, c)[1])["input_ids"]) for c in asked.choices]
    return int((losses.cpu() * torch.tensor(lengths)).argmin()) == asked.right


def checked(
    frozen: Frozen, projector: Projector, questions: Questions, sources: Sequence[Pool], count: int
) -> dict[str, float]:
    """Return the share of right answers by kind of question, over ``count`` pictures of each pool, in the
    wordings of ``cme_mm``'s likelihood form, plain and in a chat."""
    rng, found = random.Random("check"), dict[str, list[bool]]()
    for pool in sources:
        for _ in range(count):
            index = int(rng.random() * len(pool.labels))
            features = frozen.features(pool.pictures[index : index + 1])
            kind, values, choices, gold = questions.facts(rng, pool.name, pool.labels[index])
            asked = Asked(kind, questions.templates[kind, "_ll"].render(**values), choices, gold)
            for head in ("plain", "chat"):
                name = f"{kind} of {len(choices)}, {head}"
                found.setdefault(name, []).append(right(frozen, projector, features, head, asked))
    return {name: sum(hits) / len(hits) for name, hits in sorted(found.items())}


@torch.no_grad()
def named(frozen: Frozen, projector: Projector, art: Art, things: Sequence[Thing], count: int) -> float:
    """Return the share of pictures whose own name is the most likely of four as its caption."""
    rng = random.Random("names")
    hits = 0
    for thing in shuffled(rng, things)[:count]:
        options = [thing, *shuffled(rng, [t for t in things if t != thing])[:3]]
        features = frozen.features(torch.from_numpy(pixels(draw_one(art, thing)))[None])
        template = "The flag of {}." if thing.kind == "flag" else "A picture of {}."
        written = [t.name if t.kind == "flag" else captions.with_article(t.name) for t in options]
        asked = Asked("caption", "", [template.format(name) for name in written], 0)
        hits += right(frozen, projector, features, "plain", asked)
    return hits / min(count, len(things))


def main() -> None:
    """Read the arguments, train, save, and check."""
    options = _arguments()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    art = read_art(options.noto or NOTO.ensure(), "google")
    data = options.easy_vqa or EASY_VQA.ensure()
    made = functools.partial(pools, art, data, options.digits, workers=options.workers)
    start = time.perf_counter()
    sources = made([str(number) for number in range(options.pool)], variants=options.variants)
    took = time.perf_counter() - start
    print(f"pictures: {[(p.name, len(p.labels)) for p in sources]} {took:.0f} s", flush=True)
    tower = options.tower or _tower(options.out.with_name("tower.safetensors"))
    questions = Questions(art)
    language_model = options.language_model or _smollm2()
    batches = _batches(language_model, questions, sources, options)  # its processes start before CUDA does
    frozen = Frozen(tower, language_model, device, getattr(torch, options.dtype))
    projector, losses = train(frozen, sources, batches, options)
    print(json.dumps(save(projector, losses, options)), flush=True)
    others = made([f"check {number}" for number in range(options.check)], variants=0)
    for name, share in checked(frozen, projector, questions, others, options.check).items():
        print(f"{name}: {share:.3f}", flush=True)
    for style, found in (
        ("google", art),
        ("twitter", read_art(options.twemoji or TWEMOJI.ensure(), "twitter")),
    ):
        for kind, things in (("named", found.things), ("flags", found.flags)):
            print(
                f"{kind} of 4, {style}: {named(frozen, projector, found, things, options.check):.3f}",
                flush=True,
            )


def _batches(
    language_model: Path, questions: Questions, sources: Sequence[Pool], options: argparse.Namespace
) -> Iterator[Packs]:
    from transformers import AutoTokenizer

    stream = Stream(
        AutoTokenizer.from_pretrained(language_model),
        questions,
        [(pool.name, pool.share, pool.labels) for pool in sources],
        pictures=options.batch,
        each=options.each,
        seed=options.seed,
    )
    return iter(DataLoader(stream, batch_size=None, num_workers=options.workers))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="safetensors file of the projector, bfloat16")
    parser.add_argument("--tower", type=Path, help="state of the tower; default: out of its package")
    parser.add_argument(
        "--language-model", type=Path, help="folder of SmolLM2; default: smollm2 of the cache"
    )
    parser.add_argument("--noto", type=Path, help="package file of the emoji; default: fetched")
    parser.add_argument("--twemoji", type=Path, help="package file of the test style; default: fetched")
    parser.add_argument("--easy-vqa", type=Path, help="data folder of easy-VQA; default: fetched")
    parser.add_argument("--digits", type=Path, help="mm_digits of cme_mm's rows; default: made here")
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=48, help="pictures a step")
    parser.add_argument("--each", type=int, default=8, help="questions a picture of a step")
    parser.add_argument("--pool", type=int, default=40000, help="scenes; most pictures of a kind")
    parser.add_argument(
        "--variants", type=int, default=16, help="of each picture of a thing, changed by chance"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the frozen parts"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--check", type=int, default=200, help="pictures of each kind to ask about at the end"
    )
    return parser.parse_args()


def _smollm2() -> Path:
    from cme_bench.models.smollm2 import ensure

    return ensure()


def _tower(file: Path) -> Path:
    from cme_bench.models.smollava import tower_state

    save_file(tower_state(), file)
    return file


if __name__ == "__main__":
    main()

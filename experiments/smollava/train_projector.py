"""Train smollava's projector on captions: LLaVA's first stage, with tower and language model frozen.

On a GPU, and on a CPU, where it is rough::

    cd experiments/smollava
    python train_projector.py --minutes 6 --batch 192 --workers 16 --out projector.safetensors
    python train_projector.py --steps 60 --batch 8 --pool 200 --loose 1 --out projector.safetensors

Pictures: easy-VQA's training pictures, Noto's emoji alone and in scenes, Noto's flags. Twemoji is never seen.
Their features are computed once. The last lines of the output name the picture among four by likelihood: in
Noto's style and in Twemoji's.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import captions
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812

from cme_bench.models.smollava.tower import MEAN, SIZE, STD, VISION_CONFIG, WIDTH
from cme_bench.tasks.made import easy_vqa
from cme_bench.tasks.made.art import Art, Thing, read_art
from cme_bench.tasks.made.packages import EASY_VQA, NOTO, TWEMOJI
from cme_bench.tasks.made.scenes import choose_things, draw, draw_one, pick, place, shuffled

IMAGE_TOKENS = (SIZE // 14) ** 2


@dataclass(frozen=True)
class Pool:
    """Pictures of one size as uint8 (N, 3, side, side), and what each shows.

    ``loose``: each picture is taken so many times, moved, scaled and mirrored by chance; 0: once, as it is.
    """

    name: str
    share: float
    pictures: torch.Tensor
    labels: Sequence[Any]
    loose: int = 0


def pixels(picture: Any) -> np.ndarray:
    """Return a picture as uint8 (3, height, width)."""
    return np.array(picture.convert("RGB")).transpose(2, 0, 1)


_OF_WORKER: dict[str, Art] = {}


def _keep(art: Art) -> None:
    """Give a worker process its pictures, once."""
    _OF_WORKER["art"] = art


def scene(seed: int) -> tuple[np.ndarray, list[Any]]:
    """Draw the scene of a seed: different things, or some of them repeated."""
    art = _OF_WORKER["art"]
    rng = random.Random(f"projector scene {seed}")
    things = choose_things(
        rng, shuffled(random.Random("fame of training"), art.things), 1 + int(rng.random() * 6)
    )
    if rng.random() < 0.4:
        things = [things[0]] * (2 + int(rng.random() * 4)) + things[1:4]
    placed = place(rng, things[: captions.grid_size()])
    return pixels(draw(rng, art, placed)), placed


def pools(art: Art, data: Path, scenes: int, workers: int, loose: int) -> list[Pool]:
    """Return the training pictures."""
    import PIL.Image

    known = easy_vqa.labels(easy_vqa.read_questions(data, "train"))
    shapes = [(number, facts) for number, facts in known.items() if facts][: max(scenes, 100)]
    drawn = [pixels(PIL.Image.open(easy_vqa.image_file(data, "train", number))) for number, _ in shapes]
    with ProcessPoolExecutor(workers, initializer=_keep, initargs=(art,)) as several:
        made = list(several.map(scene, range(scenes), chunksize=64))
    return [
        Pool("shapes", 0.25, _stacked(drawn), [facts for _, facts in shapes]),
        Pool("things", 0.3, _stacked([pixels(draw_one(art, t)) for t in art.things]), art.things, loose),
        Pool("flags", 0.1, _stacked([pixels(draw_one(art, t)) for t in art.flags]), art.flags),
        Pool("scenes", 0.35, _stacked([picture for picture, _ in made]), [p for _, p in made]),
    ]


def _stacked(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures))


def caption(rng: random.Random, pool: Pool, index: int) -> str:
    """Return a caption of a picture."""
    label = pool.labels[index]
    if pool.name == "shapes":
        return captions.of_shape(rng, label) or ""
    if pool.name == "things":
        return captions.of_thing(rng, label.name)
    return captions.of_flag(rng, label.name) if pool.name == "flags" else captions.of_scene(rng, label)


class Frozen:
    """The tower and the language model, and the images and texts that they take."""

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
    def features(self, pictures: torch.Tensor, loose: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tower's features (N, 256, width) of pictures (N, 3, side, side) as the processor has
        them; those of ``loose`` are scaled, moved and mirrored first."""
        values = pictures.to(self.device).float()
        if values.shape[-1] != SIZE:
            values = F.interpolate(values, (SIZE, SIZE), mode="bicubic", antialias=True).round().clamp(0, 255)
        values = values / 255
        if loose is not None and loose.any():
            values[loose] = self._moved(values[loose])
        values = ((values - self.mean) / self.std).to(self.dtype)
        hidden = self.tower(values, output_hidden_states=True).hidden_states[-2]
        return hidden[:, 1:]

    def _moved(self, values: torch.Tensor) -> torch.Tensor:
        count = len(values)
        scale = 1 / torch.empty(count, device=self.device).uniform_(0.3, 1)
        side = torch.where(torch.rand(count, device=self.device) < 0.5, -1.0, 1.0)
        room = scale - 1
        shift = torch.empty(count, 2, device=self.device).uniform_(-1, 1) * room[:, None]
        grid = torch.zeros(count, 2, 3, device=self.device)
        grid[:, 0, 0], grid[:, 1, 1], grid[:, :, 2] = scale * side, scale, shift
        places = F.affine_grid(grid, list(values.shape), align_corners=False)
        gain = torch.empty(count, 3, 1, 1, device=self.device).uniform_(0.8, 1)
        moved = F.grid_sample((1 - values) * gain, places, align_corners=False)
        return 1 - moved


class Projector(nn.Module):
    """LLaVA's: two linear layers with GELU between them."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(WIDTH, out), nn.Linear(out, out)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of features."""
        return self.linear_2(F.gelu(self.linear_1(features)))


def prompt(rng: random.Random, style: float) -> tuple[str, str, str]:
    """Return what stands before the image, between image and caption, and after the caption."""
    if style < 0.4:
        return "", "\n", "<|im_end|>"
    ask = pick(rng, captions.INSTRUCTIONS)
    if style < 0.7:
        return "<|im_start|>user\n", f"\n{ask}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"
    return "", f"\n{ask}\n", "<|im_end|>"


Text = tuple[str, str, str, str]
"""What stands before the image, between image and caption; the caption; what ends it."""


def loss_of(
    frozen: Frozen, projector: Projector, features: torch.Tensor, texts: Sequence[Text]
) -> torch.Tensor:
    """Return the mean loss of each caption, (N,)."""
    encoded = [
        frozen.tokenizer(list(part), add_special_tokens=False)["input_ids"]
        for part in zip(*((a, b, c + d) for a, b, c, d in texts), strict=True)
    ]
    rows = list(zip(*encoded, strict=True))
    longest = max(len(a) + len(b) + len(c) for a, b, c in rows)
    ids = np.zeros((len(rows), longest + IMAGE_TOKENS), dtype=np.int64)
    labels = np.full_like(ids, -100)
    is_image = np.zeros(ids.shape, dtype=bool)
    for i, (a, b, c) in enumerate(rows):
        start = len(a) + IMAGE_TOKENS
        end = start + len(b) + len(c)
        ids[i, : len(a)], ids[i, start:end] = a, b + c
        labels[i, start + len(b) : end] = c
        is_image[i, len(a) : start] = True
    fed = (torch.from_numpy(array).to(frozen.device, non_blocking=True) for array in (ids, labels, is_image))
    return _losses(frozen, projector(features.float()), *fed)


def _losses(
    frozen: Frozen, images: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor, is_image: torch.Tensor
) -> torch.Tensor:
    embedded = frozen.lm.get_input_embeddings()(ids)
    embedded = embedded.masked_scatter(is_image[..., None], images.to(embedded.dtype))
    hidden = frozen.lm.model(inputs_embeds=embedded).last_hidden_state
    wanted = labels[:, 1:] != -100
    logits = frozen.lm.lm_head(hidden[:, :-1][wanted]).float()
    losses = F.cross_entropy(logits, labels[:, 1:][wanted], reduction="none")
    total = torch.zeros(len(ids), device=frozen.device).index_add(0, wanted.nonzero()[:, 0], losses)
    return total / wanted.sum(1)


def batch(rng: random.Random, sources: Sequence[Pool], count: int) -> tuple[list[Drawn], list[Text]]:
    """Draw pictures by the pools' shares, with captions."""
    chosen = rng.choices(sources, [pool.share for pool in sources], k=count)
    drawn = [(pool, int(rng.random() * len(pool.labels))) for pool in chosen]
    texts = []
    for pool, index in drawn:
        before, between, after = prompt(rng, rng.random())
        texts.append((before, between, caption(rng, pool, index), after))
    return drawn, texts


Drawn = tuple[Pool, int]


class Features:
    """The features of all pictures, on the device, computed before the first step: the tower is frozen."""

    def __init__(self, frozen: Frozen, sources: Sequence[Pool], together: int) -> None:
        self.tables = {pool.name: self._table(frozen, pool, together) for pool in sources}

    @staticmethod
    def _table(frozen: Frozen, pool: Pool, together: int) -> torch.Tensor:
        """Return (max(1, loose), N, 256, width)."""
        count, kinds = len(pool.pictures), max(1, pool.loose)
        table = torch.empty(kinds, count, IMAGE_TOKENS, WIDTH, dtype=frozen.dtype, device=frozen.device)
        for kind in range(kinds):
            for start in range(0, count, together):
                some = pool.pictures[start : start + together]
                loose = torch.full((len(some),), pool.loose > 0, device=frozen.device)
                table[kind, start : start + len(some)] = frozen.features(some, loose)
        return table

    def of(self, rng: random.Random, drawn: Sequence[Drawn]) -> torch.Tensor:
        """Return the features of a batch in its order, (N, 256, width)."""
        parts: list[torch.Tensor] = []
        order: list[int] = []
        for name, table in self.tables.items():
            rows = [i for i, (pool, _) in enumerate(drawn) if pool.name == name]
            kinds = [int(rng.random() * len(table)) for _ in rows]
            order += rows
            parts.append(table[kinds, [drawn[i][1] for i in rows]])
        places = torch.tensor(np.argsort(order), device=parts[0].device)
        return torch.cat(parts)[places]


def train(
    frozen: Frozen, sources: Sequence[Pool], options: argparse.Namespace
) -> tuple[Projector, list[torch.Tensor]]:
    """Train for ``steps`` steps or ``minutes`` minutes: AdamW, warm-up, cosine, as LLaVA's first stage."""
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    projector = Projector(frozen.lm.config.hidden_size).to(frozen.device)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=options.lr, weight_decay=0.0)
    start, losses, step = time.perf_counter(), [], 0
    kept = Features(frozen, sources, options.batch)
    print(f"features: {time.perf_counter() - start:.0f} s", flush=True)
    start = time.perf_counter()
    while True:
        spent = (
            (time.perf_counter() - start) / (60 * options.minutes)
            if options.minutes
            else step / options.steps
        )
        if spent >= 1:
            break
        rate = min(1.0, spent / 0.03 + 1e-3) * 0.5 * (1 + np.cos(np.pi * spent))
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate
        drawn, texts = batch(rng, sources, options.batch)
        loss = loss_of(frozen, projector, kept.of(rng, drawn), texts).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        step += 1
        if step in (1, 5) or step % 20 == 0:
            print(
                f"step {step}  {time.perf_counter() - start:.0f} s  loss {mean(losses[-20:]):.3f}",
                flush=True,
            )
    return projector, losses


def mean(losses: Sequence[torch.Tensor]) -> float:
    """Return the mean of losses, for which a device is waited for."""
    return float(torch.stack(list(losses)).mean())


@torch.no_grad()
def named(frozen: Frozen, projector: Projector, art: Art, things: Sequence[Thing], count: int) -> float:
    """Return the share of pictures whose own name is the most likely of four as its caption."""
    rng = random.Random("names")
    right = 0
    for thing in shuffled(rng, things)[:count]:
        options = [thing, *shuffled(rng, [t for t in things if t != thing])[:3]]
        features = frozen.features(torch.from_numpy(pixels(draw_one(art, thing)))[None])
        template = "The flag of {}." if thing.kind == "flag" else "A picture of {}."
        written = [t.name if t.kind == "flag" else captions.with_article(t.name) for t in options]
        texts = [("", "\n", template.format(name), "") for name in written]
        losses = loss_of(frozen, projector, features.expand(len(options), -1, -1), texts)
        lengths = torch.tensor(
            [len(frozen.tokenizer(c)["input_ids"]) for _, _, c, _ in texts], device=losses.device
        )
        right += int((losses * lengths).argmin()) == 0
    return right / min(count, len(things))


def main() -> None:
    """Read the arguments, train, save, and name pictures."""
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
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pool", type=int, default=20000, help="scenes")
    parser.add_argument("--loose", type=int, default=16, help="variants of each picture of a thing")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the frozen parts"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", type=int, default=200, help="pictures of each style to name at the end")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, options.dtype)
    art = read_art(options.noto or NOTO.ensure(), "google")
    start = time.perf_counter()
    sources = pools(art, options.easy_vqa or EASY_VQA.ensure(), options.pool, options.workers, options.loose)
    print(
        f"pictures: {[(p.name, len(p.labels)) for p in sources]} {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    tower = options.tower or _tower(options.out.with_name("tower.safetensors"))
    language_model = options.language_model or _smollm2()
    frozen = Frozen(tower, language_model, device, dtype)
    projector, losses = train(frozen, sources, options)
    state = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in projector.state_dict().items()
    }
    record = {
        "steps": len(losses),
        "batch": options.batch,
        "seed": options.seed,
        "lr": options.lr,
        "pool": options.pool,
    }
    record["last_loss"] = round(mean(losses[-20:]), 4)
    save_file(state, options.out, metadata={"training": json.dumps(record)})
    print(json.dumps(record))
    for style, found in (
        ("google", art),
        ("twitter", read_art(options.twemoji or TWEMOJI.ensure(), "twitter")),
    ):
        print(f"named of 4, {style}: {named(frozen, projector, found, found.things, options.check):.3f}")
        print(
            f"flags of 4, {style}: {named(frozen, projector, found, found.flags, options.check):.3f}",
            flush=True,
        )


def _smollm2() -> Path:
    from cme_bench.models.smollm2 import ensure

    return ensure()


def _tower(file: Path) -> Path:
    from cme_bench.models.smollava import tower_state

    save_file(tower_state(), file)
    return file


if __name__ == "__main__":
    main()

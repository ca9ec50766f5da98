"""Put a trained adapter into the package, as `make demo-adapter` does: without this machine's paths.

    python experiments/ship_adapter.py FOLDER NAME

Paths of the base model, the rows and the folder itself are cut to their last part; nothing else changes.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from cme_bench.models.packaged import FOLDER

MOST_BYTES = 3 * 2**20


def without_paths(value: Any) -> Any:
    """Return a JSON value whose absolute paths are cut to their last part; of rows two are kept."""
    if isinstance(value, dict):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_paths(part) for part in value]
    if isinstance(value, str) and value.startswith(("/", "~", "..")):
        path = Path(value)
        return "/".join(path.parts[-2:]) if path.suffix == ".jsonl" else path.name
    return value


def main(source: Path, name: str) -> None:
    """Copy weights, config and record of ``source``; refuse weights that are too large to ship."""
    weights = source / "adapter_model.safetensors"
    if weights.stat().st_size > MOST_BYTES:
        sys.exit(f"{weights}: {weights.stat().st_size:,} bytes, more than {MOST_BYTES:,}")
    out = FOLDER / name
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, out / weights.name)
    for file in ("adapter_config.json", "cme_training.json"):
        content = without_paths(json.loads((source / file).read_text(encoding="utf-8")))
        (out / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"{out}: its card, README.md, is written by hand")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2])

"""Tables of a router, as csv: the numbers behind its figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cme_bench.util.csv_text import frame_csv
from cme_bench.util.files import write_text


def write_router_tables(
    load: pd.DataFrame, means: pd.DataFrame, interaction: pd.DataFrame, label: str, out: Path
) -> None:
    """Write router_load.csv, router_by_LABEL.csv, and router_interaction.csv if the adapter has an M.

    Args:
        load: ``load_frame``'s columns, a row for each slice of items, layer and expert.
        means: ``load`` averaged over the slices of one ``label``, "domain" or "group".
        interaction: ``interaction_frame``'s columns; may be empty.
        out: Existing folder.
    """
    frames = {"router_load.csv": load, f"router_by_{label}.csv": means}
    if len(interaction):
        frames["router_interaction.csv"] = interaction
    for name, frame in frames.items():
        write_text(out / name, frame_csv(frame))

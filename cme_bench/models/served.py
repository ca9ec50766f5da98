"""A model behind a server: known by its name and its answers; its tokenizer comes from a folder here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

import orjson

from cme_bench.engines.server.probe import Served, probe
from cme_bench.models.checkpoint import Checkpoint, config_folder, fetched_origin
from cme_bench.models.load import load_config
from cme_bench.models.loaded import FolderModel
from cme_bench.models.records import ModelRecord
from cme_bench.util.errors import UsageError
from cme_bench.util.notes import Note, unheard
from cme_bench.util.options import DType

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cme_bench.engines.server.client import Server


class ServedModel(FolderModel):
    """The model that a server answers with; MODEL gives its tokenizer and config, and no weights are read.

    ``hash`` is over the served name and its answers to fixed prompts. Raises UsageError if MODEL cannot be
    found, or if its tokenizer is not the server's.
    """

    def __init__(
        self,
        name: str,
        server: Server,
        served_name: str | None,
        *,
        offline: bool = False,
        note: Note = unheard,
    ) -> None:
        folder = config_folder(name, offline=offline, note=note)
        if not (folder / "config.json").is_file():
            raise UsageError(f"{folder}: no config.json, so this is not the folder of a model")
        self.checkpoint = Checkpoint(folder.name, folder, "", fetched_origin(folder).get("revision"))
        self.config = load_config(self.checkpoint)
        self.served: Served = probe(server, served_name, self.tokenizer)
        self.name = Path(self.served.name).name
        self.place = server.url
        told = [self.served.name, self.served.fingerprint, self.served.dialect.name]
        self.hash = hashlib.sha256(orjson.dumps(told)).hexdigest()
        self.dtype_because = "a server computes in its own type"

    @property
    def model(self) -> PreTrainedModel:
        raise UsageError(f"{self.name} is served: its weights are not here")

    @property
    def parameters(self) -> int:
        raise UsageError(f"{self.name} is served: its weights are not here")

    @property
    def dtype_name(self) -> DType:
        """Return that the type is not known."""
        return cast("DType", UNKNOWN)

    def describe(self) -> ModelRecord:
        """Return the model as ``run.json`` records it; ``path`` is the tokenizer's folder."""
        return ModelRecord(
            name=self.name,
            path=str(self.checkpoint.path),
            hash=self.hash,
            architecture=(self.config.architectures or ["unknown"])[0],
            dtype=UNKNOWN,
            dtype_because=self.dtype_because,
        )


UNKNOWN = "unknown"
"""The type of a model whose weights are elsewhere."""

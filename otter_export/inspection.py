"""A checkpoint or an engine in numbers, from JSON files and safetensors headers only."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from otter_export import config as config_file
from otter_export import manifest as manifest_file
from otter_export.base_model import BaseModel
from otter_export.checkpoint import Checkpoint
from otter_export.errors import OtterError
from otter_export.family import ProjectionSite, Space
from otter_export.files import is_file
from otter_export.manifest import EngineManifest
from otter_export.safetensors_io import TensorStore

#: Parts of a model, in the order in which they are shown.
PARTS = (
    "embedding",
    "attention",
    "feed-forward",
    "norms",
    "output head",
    "signals",
    "other",
)


@dataclasses.dataclass(frozen=True)
class Size:
    """Number of values of some tensors, and their size as stored."""

    parameters: int = 0
    bytes: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.parameters + other.parameters, self.bytes + other.bytes)


@dataclasses.dataclass(frozen=True)
class CheckpointSummary:
    """A validated checkpoint in numbers.

    Args:
        checkpoint: The opened checkpoint.
        base: Size of each part of the base.
        inserted: Size of each part of the channel.
    """

    checkpoint: Checkpoint
    base: Mapping[str, Size]
    inserted: Mapping[str, Size]

    @property
    def base_total(self) -> Size:
        """Size of the base."""
        return sum(self.base.values(), Size())

    @property
    def inserted_total(self) -> Size:
        """Size of the channel."""
        return sum(self.inserted.values(), Size())

    @property
    def share(self) -> float:
        """Inserted parameters over base parameters."""
        return self.inserted_total.parameters / self.base_total.parameters

    def to_json(self) -> dict[str, Any]:
        """The summary for ``inspect --json``."""
        model, config = self.checkpoint.base, self.checkpoint.config.to_json()
        signals = config.pop("signals")
        location = config.pop("base_model_name_or_path")
        return {
            "kind": "checkpoint",
            "path": str(self.checkpoint.directory),
            "format_version": self.checkpoint.config.version,
            "base": {
                "family": model.family.name,
                "location": location,
                **dataclasses.asdict(model.dimensions),
                **dataclasses.asdict(self.base_total),
                "dtypes": dtypes(model.parameters),
            },
            "channel": {
                **{k: v for k, v in config.items() if k not in ("format", "version")},
                **dataclasses.asdict(self.inserted_total),
                "share_of_base": self.share,
                "dtypes": dtypes(self.checkpoint.tensors),
            },
            "signals": signals,
            "parts": {
                part: {
                    "base": dataclasses.asdict(self.base.get(part, Size())),
                    "inserted": dataclasses.asdict(self.inserted.get(part, Size())),
                }
                for part in PARTS
                if part in self.base or part in self.inserted
            },
        }


@dataclasses.dataclass(frozen=True)
class EngineSummary:
    """An engine directory whose files exist with their sizes."""

    directory: Path
    manifest: EngineManifest

    def to_json(self) -> dict[str, Any]:
        """The summary for ``inspect --json``: the manifest with the path."""
        manifest = self.manifest.to_json()
        manifest["format_version"] = manifest.pop("version")
        manifest.pop("format")
        return {"kind": "engine", "path": str(self.directory), **manifest}


def inspect(path: Path) -> CheckpointSummary | EngineSummary:
    """Read a checkpoint or an engine directory; no weights are read, and nothing is fetched.

    Raises:
        OtterError: It is neither, or it is damaged.
    """
    if not path.is_dir():
        raise OtterError(f"{path} is not a directory; expected a checkpoint or an engine")
    if is_file(path / manifest_file.FILE_NAME):
        return EngineSummary(path, EngineManifest.load(path))
    if is_file(path / config_file.FILE_NAME):
        return summarize(Checkpoint.open(path, fetch=False))
    raise OtterError(
        f"{path} has neither {config_file.FILE_NAME} (a checkpoint) nor "
        f"{manifest_file.FILE_NAME} (an engine)"
    )


def summarize(checkpoint: Checkpoint) -> CheckpointSummary:
    """Add up the sizes of a checkpoint's parts."""
    parts = _part_by_stem(checkpoint.base)
    return CheckpointSummary(
        checkpoint,
        _sizes(checkpoint.base.parameters, parts),
        _sizes(checkpoint.tensors, parts),
    )


def dtypes(store: TensorStore) -> dict[str, int]:
    """Bytes by dtype, the largest first."""
    counts: Counter[str] = Counter()
    for info in store.values():
        counts[info.dtype] += info.nbytes
    return dict(counts.most_common())


def _sizes(store: TensorStore, parts: Mapping[str, str]) -> dict[str, Size]:
    sizes: dict[str, Size] = {}
    for name, info in store.items():
        part = "signals" if name.startswith("signals.") else parts.get(_stem(name), "other")
        # A channel that begins inside the base names what it begins with after a layer or a norm.
        part = "embedding" if name.endswith(".otter.projection") else part
        sizes[part] = sizes.get(part, Size()) + Size(info.elements, info.nbytes)
    return sizes


def _stem(name: str) -> str:
    """``P`` of ``P.otter.from_base`` or of ``P.weight``."""
    stem, separator, _ = name.partition(".otter.")
    return stem if separator else name.rpartition(".")[0]


def _part_by_stem(base: BaseModel) -> dict[str, str]:
    """Part of every module of a base."""
    sites = base.sites
    parts = {name: "embedding" for name, _ in sites.embeddings}
    parts |= {norm.name: "norms" for norm in sites.norms}
    parts |= {base.family.output_head: "output head"}
    for site in sites.projections:
        parts |= {name: _projection_part(site) for name in (site.name, site.parameter)}
    return parts


def _projection_part(site: ProjectionSite) -> str:
    inner = Space.INNER in (site.reads, site.writes)
    return "feed-forward" if inner else "attention"

"""Formats of heads that others trained. A new one is one file here, one line below and one test."""

from __future__ import annotations

from otter_export.errors import CheckpointError
from otter_export.importing.source import Source, SourceFormat
from otter_export.registry import Registry

__all__ = ["FORMATS", "Source", "SourceFormat", "format_of"]

FORMATS: Registry[SourceFormat] = Registry("source format", expected=SourceFormat)
FORMATS.register("value-head", "otter_export.importing.value_head:VALUE_HEAD")
FORMATS.register("classifier", "otter_export.importing.classifier:CLASSIFIER")
FORMATS.register("medusa", "otter_export.importing.medusa:MEDUSA")


def format_of(source: Source) -> SourceFormat:
    """The format of a source, by its tensors.

    Raises:
        CheckpointError: It has none of the known heads.
    """
    for name in FORMATS:
        if FORMATS.load(name).fits(source):
            return FORMATS.load(name)
    known = "; ".join(f"{name}: {FORMATS.load(name).expects}" for name in FORMATS)
    raise CheckpointError(f"{source.path} has no head that is known here. {known}")

"""Whether a model file is the one that its ``engine.json`` describes; shared by the contracts."""

from __future__ import annotations

from collections.abc import Sequence

from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest

#: Disagreements that an error names.
_SHOWN = 5


def compatible(actual: Sequence[object], wanted: Sequence[object]) -> bool:
    """Equal rank, and equal sizes wherever both are fixed; a name or None is any size."""
    return len(actual) == len(wanted) and all(
        not (isinstance(a, int) and isinstance(w, int)) or a == w
        for a, w in zip(actual, wanted, strict=True)
    )


def refuse_mismatch(manifest: EngineManifest, problems: Sequence[str]) -> None:
    """Raise `EngineError` with the first problems, if there are any."""
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise EngineError(
            f"{manifest.model_file} does not match engine.json: {'; '.join(problems[:_SHOWN])}"
            f"{more}. Build the engine again"
        )

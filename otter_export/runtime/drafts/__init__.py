"""Drafts: tokens that are guessed and checked in one step. They never change a token.

A new drafter is one file here, one line below and one test.
"""

from __future__ import annotations

from collections.abc import Callable

from otter_export.errors import RequestError
from otter_export.manifest import EngineManifest
from otter_export.quoting import quoted
from otter_export.registry import Registry
from otter_export.runtime.drafts.drafter import Drafter
from otter_export.runtime.drafts.medusa import MedusaHeads, drafting
from otter_export.runtime.engine import Engine

#: What a request says for no drafts.
NONE = "none"

#: Makes the drafter of one request.
DrafterMaker = Callable[[Engine], Drafter]

DRAFTERS: Registry[DrafterMaker] = Registry("drafter")
DRAFTERS.register("lookup", "otter_export.runtime.drafts.lookup:make_lookup")
DRAFTERS.register("auto", "otter_export.runtime.drafts.auto:make_auto")


def draft_names(manifest: EngineManifest) -> tuple[str, ...]:
    """What a request may say on an engine: also the names of its signals that draft."""
    return (NONE, *DRAFTERS, *(signal.name for signal in drafting(manifest)))


def make_drafter(name: str, engine: Engine) -> Drafter | None:
    """The drafter of a request; None for ``none``.

    Raises:
        RequestError: There is none of that name on this engine.
    """
    known = draft_names(engine.manifest)
    if name not in known:
        raise RequestError(f"drafts must be one of {', '.join(known)} here, got {quoted(name)}")
    if name == NONE:
        return None
    if name in DRAFTERS:
        return DRAFTERS.load(name)(engine)
    return MedusaHeads.of(engine, engine.manifest.signal(name))

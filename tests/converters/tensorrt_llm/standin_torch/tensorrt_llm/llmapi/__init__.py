"""Settings of the LLM API."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class KvCacheConfig:
    enable_block_reuse: bool = True
    enable_partial_reuse: bool = True

"""The registry that trtllm-build looks a checkpoint's architecture up in."""

from __future__ import annotations

from typing import Any

MODEL_MAP: dict[str, Any] = {}

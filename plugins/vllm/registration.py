"""The entry point ``vllm.general_plugins``: vLLM calls it in each of its processes."""

from __future__ import annotations

import logging
import re

from otter_export.errors import UnsupportedError

#: Its internals change with each release, and these are the ones that were read and run.
SUPPORTED = ((0, 32),)
_LOG = logging.getLogger("vllm.otter_export")


def register() -> None:
    """Register the architectures and the reading of configurations; may be called repeatedly.

    With a version of vLLM that is not supported, checkpoints are refused by name when they are
    opened, for their base alone would answer otherwise; other models are served as ever.
    """
    from vllm import ModelRegistry, __version__
    from vllm.model_executor.models import config as updates
    from vllm.transformers_utils.config import HFConfigParser, register_config_parser

    from otter_export.plugins.vllm.bases import ARCHITECTURES
    from otter_export.plugins.vllm.checkpoint_config import ConfigUpdate, config_parser

    problem = unsupported(__version__)
    if problem:
        _LOG.warning(problem)
    parser = config_parser(HFConfigParser, problem)
    # vLLM warns where a format has a parser already; "hf" is the one that it takes for directories.
    level = logging.getLogger("vllm.transformers_utils.config")
    before, level.disabled = level.disabled, True
    try:
        for name in ("otter", "hf"):
            register_config_parser(name)(parser)
    finally:
        level.disabled = before
    if problem:
        return
    known = set(ModelRegistry.get_supported_archs())
    for architecture in ARCHITECTURES:
        if architecture not in known:
            path = f"otter_export.plugins.vllm.model:{architecture}"
            ModelRegistry.register_model(architecture, path)
        updates.MODELS_CONFIG_MAP[architecture] = ConfigUpdate


def unsupported(version: str) -> str:
    """Why a version of vLLM cannot be used, or nothing."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) in SUPPORTED:
        return ""
    accepted = ", ".join(f"{major}.{minor}.*" for major, minor in SUPPORTED)
    return (
        f"otter-export's plugin supports vLLM {accepted}, and this is {version}: Otter checkpoints "
        f"are refused; install one of those, or another release of otter-export"
    )


def refuse(reason: str) -> None:
    """Raise `UnsupportedError` if there is a reason."""
    if reason:
        raise UnsupportedError(reason)

"""``vllm serve CKPT``: vLLM reads a checkpoint's configuration as its base's with a channel."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from vllm.config import CompilationMode, CUDAGraphMode
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from otter_export.checkpoint import Checkpoint
from otter_export.config import FILE_NAME, OtterConfig
from otter_export.errors import UnsupportedError
from otter_export.plugins.vllm.admission import admission_name
from otter_export.plugins.vllm.bases import check_servable

_LOG = logging.getLogger("vllm.otter_export")
_PACKAGE = "otter_export.plugins.vllm"


def config_parser(parent: Any, problem: str) -> Any:
    """VLLM's parser for Hugging Face directories, which knows Otter checkpoints too.

    Args:
        parent: vLLM's class; everything that is no Otter checkpoint is its own.
        problem: Why checkpoints are refused, or nothing.
    """

    class OtterConfigParser(parent):  # type: ignore[misc]
        """Gives the base's configuration, with an architecture that has a channel."""

        def parse(self, model: Any, trust_remote_code: bool, *args: Any, **kwargs: Any) -> Any:
            if not (Path(model) / FILE_NAME).is_file():
                return super().parse(model, trust_remote_code, *args, **kwargs)
            if problem:
                raise UnsupportedError(problem)
            checkpoint = Checkpoint.open(model)
            architecture = check_servable(checkpoint.base, checkpoint.config)
            base = str(checkpoint.base.directory)
            data, config = super().parse(base, trust_remote_code, *args, **kwargs)
            entries = {
                "architectures": [architecture],
                "otter_checkpoint": str(checkpoint.directory.resolve()),
                "otter_base": base,
            }
            data.update(entries)
            for name, value in entries.items():
                setattr(config, name, value)
            return data, config

    return OtterConfigParser


def checkpoint_directory(model_config: Any) -> Path:
    """Where an engine's channel lies; beside its model in a directory of target ``vllm``."""
    return Path(getattr(model_config.hf_config, "otter_checkpoint", model_config.model))


class ConfigUpdate(VerifyAndUpdateConfig):
    """What vLLM asks before it makes an engine for one of our architectures."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Choose worker, scheduler and runner; refuse what has no guidance.

        Raises:
            UnsupportedError: A setting of the engine has no implementation here.
        """
        model, parallel = vllm_config.model_config, vllm_config.parallel_config
        if model.tokenizer == model.model:  # an adapter has none of its own
            model.tokenizer = getattr(model.hf_config, "otter_base", model.model)
        _check_engine(vllm_config)
        _force_eager(vllm_config)
        _force_first_runner()
        kind = "CPU" if current_platform.is_cpu() else "GPU"
        parallel.worker_cls = f"{_PACKAGE}.worker.Otter{kind}Worker"
        signals = OtterConfig.load(checkpoint_directory(model)).signals
        speculative = vllm_config.speculative_config
        candidates = 0 if speculative is None else speculative.num_speculative_tokens
        own = admission_name(signals, candidates)
        model.logits_processors = [*(model.logits_processors or ()), own]
        if candidates:
            vllm_config.scheduler_config.scheduler_cls = f"{_PACKAGE}.scheduler.OtterScheduler"


def _check_engine(vllm_config: Any) -> None:
    parallel, speculative = vllm_config.parallel_config, vllm_config.speculative_config
    if parallel.pipeline_parallel_size > 1:
        raise UnsupportedError("Otter models run with tensor parallelism, not in a pipeline")
    if vllm_config.model_config.runner_type != "generate":
        raise UnsupportedError("Otter models generate; serve the base itself for pooling")
    if vllm_config.lora_config is not None:
        raise UnsupportedError("Otter models take no LoRA adapters: the channel would not fit them")
    own = ("custom_class", f"{_PACKAGE}.candidates.Proposer")
    if speculative is not None and (speculative.method, speculative.model) != own:
        raise UnsupportedError(
            f"speculative method {speculative.method!r} would bypass guidance; leave it out, or "
            "guide by a value signal with the --speculative-config of docs/vllm.md"
        )


def _force_eager(vllm_config: Any) -> None:
    """The channel runs in hooks on modules, which a compiled model does not call."""
    if not vllm_config.model_config.enforce_eager:
        _LOG.warning("Otter models run eagerly: compilation and CUDA graphs are off")
    vllm_config.model_config.enforce_eager = True
    vllm_config.compilation_config.mode = CompilationMode.NONE
    vllm_config.compilation_config.cudagraph_mode = CUDAGraphMode.NONE


def _force_first_runner() -> None:
    """Guidance is in the first model runner's sampler; the second has another."""
    name = "VLLM_USE_V2_MODEL_RUNNER"
    if os.environ.get(name, "0") != "0":
        raise UnsupportedError(f"{name}=1: Otter models are guided in the first runner only")
    os.environ[name] = "0"

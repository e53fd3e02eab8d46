"""The `Engine` protocol on the torch reference: a checkpoint decodes as it is, without a build.

On a GPU without TensorRT this runs the whole decoding loop, by CUDA graphs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch

from otter_export import __version__, engine_io
from otter_export.arguments import choice
from otter_export.checkpoint import Checkpoint
from otter_export.errors import CheckpointError, EngineError
from otter_export.manifest import EngineManifest
from otter_export.modeling.otter_model import OtterModel, load_base
from otter_export.modeling.torch_step import TorchStep
from otter_export.runtime.engine import FloatArray
from otter_export.runtime.executor import RowRule, StepInputs
from otter_export.runtime.memory.torch import TorchBlock, torch_memory
from otter_export.runtime.recent import Recent
from otter_export.runtime.step_engine import StepEngine
from otter_export.tokenizer_file import FILE_NAME as TOKENIZER_FILE

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
DEVICES = ("cpu", "cuda")
#: Slots of the smallest cache. It grows by doubling: each size has CUDA graphs of its own.
SLOTS = 256
#: Addresses of blocks, and a shape.
_StepKey = tuple[tuple[int, ...], tuple[int, int, int]]


@dataclasses.dataclass(frozen=True)
class TorchOptions:
    """How a checkpoint runs.

    Args:
        device: ``cpu`` or ``cuda``; None takes a GPU if there is one.
        precision: ``fp32``, ``fp16`` or ``bf16``; None takes fp32 on the CPU, and on a GPU what the
            base is stored in.
        cuda_graphs: Whether steps of decoding are captured on a GPU.
        fused: Whether projections run by the fused kernel, in half precision (needs Triton).
        max_graph_step: Longest step that is captured: one of decoding, not of a prompt.
        max_shapes: Shapes whose buffers and graphs are kept, the most recently used ones.
        max_batch_size: Most sequences of a step.
        max_step: Most tokens of a step; a longer one runs in parts.
    """

    device: str | None = None
    precision: str | None = None
    cuda_graphs: bool = True
    fused: bool = False
    max_graph_step: int = 32
    max_shapes: int = 64
    max_batch_size: int = 256
    max_step: int = 1024


def load_checkpoint(
    directory: Path, provider: str | None = None, threads: int | None = None
) -> StepEngine:
    """The engine of a checkpoint directory; see `otter_export.load_engine`.

    Args:
        directory: The checkpoint.
        provider: ``cpu`` or ``cuda``; None takes a GPU if there is one.
        threads: Threads of the CPU; None leaves torch's own number.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    return torch_engine(Checkpoint.open(directory), TorchOptions(device=provider))


def torch_engine(checkpoint: Checkpoint, options: TorchOptions | None = None) -> StepEngine:
    """An engine from a checkpoint, in memory.

    Raises:
        CheckpointError: transformers cannot load the base, or it has no ``tokenizer.json``.
        EngineError: There is no such device, or its memory is too small.
        MissingDependencyError: Fused projections are asked for, and Triton is not installed.
        RequestError: An option is not known.
    """
    options = _resolved(checkpoint, options or TorchOptions())
    directory = checkpoint.base.directory
    if not (directory / TOKENIZER_FILE).is_file():
        raise CheckpointError(
            f"{directory} has no {TOKENIZER_FILE}; save the fast tokenizer there: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    dtype: torch.dtype = getattr(torch, DTYPES[str(options.precision)])
    try:
        model = _load_model(checkpoint, dtype, str(options.device))
    except torch.OutOfMemoryError:
        raise EngineError(
            f"the GPU has not enough memory for the model in {options.precision}; use a smaller "
            "precision, or provider cpu"
        ) from None
    if options.fused:
        from otter_export.modeling.fused_projections import use_fused_projections

        use_fused_projections(model)
    manifest = _manifest(checkpoint, options)
    executor = TorchExecutor(model, checkpoint, options)
    return StepEngine(directory, manifest, executor, checkpoint.token_ids)


class TorchExecutor:
    """Runs steps of the reference; keeps buffers and graphs of the shapes that recur.

    Args:
        model: On its device, in its dtype.
        checkpoint: For sizes.
        options: With device and precision resolved.
    """

    cache_form = engine_io.IN_PLACE
    row_rule = RowRule(pairs=False, even_steps=True)  # fewer shapes to capture
    chains_alike = False

    def __init__(self, model: OtterModel, checkpoint: Checkpoint, options: TorchOptions) -> None:
        base, config = checkpoint.base.dimensions, checkpoint.config
        self._model = model
        self._options = options
        heads, first = base.num_key_value_heads, config.first_layer
        # Layers and heads of each block: those below the channel, and those that have it.
        layers = {heads: first, heads + config.num_key_value_heads: base.num_hidden_layers - first}
        self._layers = [(count, heads) for heads, count in layers.items() if count]
        self._size = base.head_dim
        self._most = base.max_position_embeddings + options.max_step
        self._steps: Recent[_StepKey, TorchStep] = Recent(options.max_shapes)
        self._memory = torch_memory(str(options.device), self._forget)
        captures = options.cuda_graphs and options.device == "cuda"
        self._graph_pool = torch.cuda.graph_pool_handle() if captures else None

    @property
    def max_batch_size(self) -> int:
        """As `TorchOptions` says."""
        return self._options.max_batch_size

    def accepts(self, batch: int, step: int, kept: int) -> bool:
        """Any shape within the options; see `Executor.accepts`."""
        return batch <= self._options.max_batch_size and step <= self._options.max_step

    def slots(self, needed: int, held: int = 0) -> int:
        """A power of two times `SLOTS`; see `Executor.slots`."""
        slots = SLOTS
        while slots < needed:
            slots *= 2
        return min(slots, self._most)

    def blocks(self, places: int, slots: int, *, zeroed: bool = True) -> tuple[TorchBlock, ...]:
        """Base and channel heads of a layer lie together; see `Executor.blocks`."""
        dtype = DTYPES[str(self._options.precision)]
        return tuple(
            self._memory.block((2 * layers, places, heads, slots, self._size), dtype, zeroed=zeroed)
            for layers, heads in self._layers
        )

    def run(
        self, blocks: tuple[TorchBlock, ...], inputs: StepInputs, rows: None = None
    ) -> Mapping[str, FloatArray]:
        """Run the model; see `Executor.run`."""
        for _ in range(2):
            try:
                return self._step(blocks, inputs.shape).run(inputs)
            except torch.OutOfMemoryError:
                # What is only kept for later may be enough.
                self._memory.clear()
                self._steps.forget(lambda _: True)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise EngineError(f"the model failed in torch: {reason}") from None
        batch, step, _ = inputs.shape
        raise EngineError(
            f"the GPU ran out of memory in a step of {batch} sequences of {step} tokens; give a "
            "smaller --batch-size"
        )

    def _step(self, blocks: tuple[TorchBlock, ...], shape: tuple[int, int, int]) -> TorchStep:
        """What runs this shape on this memory; a prompt's shapes hardly recur, so are not kept."""
        memory = [block.tensor for block in blocks]
        if shape[1] > self._options.max_graph_step:
            return TorchStep(self._model, memory, shape, None)
        return self._steps.get(
            (tuple(block.address(0) for block in blocks), shape),
            lambda: TorchStep(self._model, memory, shape, self._graph_pool),
        )

    def _forget(self, address: int) -> None:
        """Drop what refers to memory that is given up."""
        self._steps.forget(lambda key: address in key[0])


def _resolved(checkpoint: Checkpoint, options: TorchOptions) -> TorchOptions:
    """Options with nothing left open."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = choice("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            "provider cuda: torch finds no CUDA device here; use provider cpu, or install torch's "
            "CUDA build on a machine with an NVIDIA GPU"
        )
    stored = checkpoint.base.data.get("dtype", checkpoint.base.data.get("torch_dtype"))
    own = {name: precision for precision, name in DTYPES.items()}.get(str(stored), "fp32")
    precision = options.precision or ("fp32" if device == "cpu" else own)
    precision = choice("precision", precision, DTYPES)
    return dataclasses.replace(options, device=device, precision=precision)


def _load_model(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> OtterModel:
    """The reference on its device; parameters in ``dtype``, signal heads in float32.

    Buffers keep their dtype: the frequencies of the rotary embedding in half precision would turn
    far positions by a wrong angle.
    """
    source = checkpoint.base
    base = load_base(source, dtype)
    model = OtterModel(base, checkpoint.config, source.family, source.dimensions, source.sites)
    model.load_channel(checkpoint.float32)
    for name, parameter in model.named_parameters():
        wide = name.startswith("signals.")
        parameter.data = parameter.data.to(device, torch.float32 if wide else dtype)
        parameter.requires_grad_(False)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    return model.eval()


def _manifest(checkpoint: Checkpoint, options: TorchOptions) -> EngineManifest:
    """What ``engine.json`` would say if this engine had a directory."""
    bos, eos = checkpoint.base.special_token_ids
    channel = dataclasses.asdict(checkpoint.config)
    return EngineManifest(
        target="torch",
        precision=str(options.precision),
        execution_provider=str(options.device),
        cache_form=engine_io.IN_PLACE,
        model_file="",
        base=dataclasses.asdict(checkpoint.base.dimensions),
        channel={n: v for n, v in channel.items() if type(v) is int or n == "attention"},
        signals=checkpoint.config.signals,
        max_sequence_length=checkpoint.base.dimensions.max_position_embeddings,
        bos_token_id=bos,
        eos_token_ids=eos,
        inputs=(),
        outputs=(),
        files=(),
        builder={"name": "otter-export", "version": __version__, "torch": torch.__version__},
        source={"checkpoint": checkpoint.directory.resolve().name},
        options={
            "cuda_graphs": options.cuda_graphs,
            "fused": options.fused,
            "max_batch_size": options.max_batch_size,
            "max_step": options.max_step,
        },
    )

"""One step of `OtterModel` on a cache in place: static buffers, and a CUDA graph of them.

On a GPU the same kernels are launched for every step of one shape; from Python that takes longer
than they run. A CUDA graph launches them all at once, and reads and writes the memory that they had
when it was captured, hence the static buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from otter_export import engine_io
from otter_export.modeling.masks import layer_masks
from otter_export.modeling.otter_model import OtterModel, base_logits
from otter_export.runtime.engine import FloatArray
from otter_export.runtime.executor import StepInputs

#: Steps of a shape that run without a graph before one is captured: capturing costs several steps.
EAGER_STEPS = 2


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer; an update writes each sequence's rows into its own slots.

    Base and channel heads share one cache: transformers' attention runs on both together.

    Args:
        keys: ``[B, heads, slots, e]``.
        values: Likewise.
        places: ``[B, 1]``: 0 to B - 1.
        slots: ``[B, S]``: where the rows of a step go.
    """

    is_sliding = False
    is_compileable = True

    def __init__(self, keys: Tensor, values: Tensor, places: Tensor, slots: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = keys, values
        self.keys, self.values = keys, values
        self._places, self._slots = places, slots
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The memory is there already."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write rows ``[B, heads, S, e]``; returns all slots, which the mask tells apart."""
        keys, values = self._memory
        keys[self._places, :, self._slots] = key_states.transpose(1, 2)
        values[self._places, :, self._slots] = value_states.transpose(1, 2)
        return keys, values

    def get_seq_length(self) -> int:
        """Not known here: sequences of a batch differ; the mask says it."""
        return 0

    def get_max_length(self) -> int:
        """Slots."""
        return int(self._memory[0].shape[2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a mask covers, and the first."""
        return self.get_max_length(), 0


class TorchStep:
    """Runs steps of one shape on one block.

    Args:
        model: The model.
        blocks: ``[2 * layers, places, heads, slots, e]`` each, one behind the other.
        shape: ``(B, S, R)``.
        graph_pool: Memory that CUDA graphs share, from `torch.cuda.graph_pool_handle`; None
            captures none. They run one after another, and outputs are copied before the next runs.
    """

    def __init__(
        self,
        model: OtterModel,
        blocks: Sequence[Tensor],
        shape: tuple[int, int, int],
        graph_pool: Any,
    ) -> None:
        batch, step, kept = shape
        self._model = model
        self._blocks = blocks
        self._graph_pool = graph_pool
        self._uses = 0
        self._graph: Any = None
        device, slots = blocks[0].device, blocks[0].shape[3]

        def integers(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.int64, device=device)

        mask = torch.zeros((batch, 1, step, slots), dtype=torch.bool, device=device)
        self._inputs = {
            engine_io.INPUT_IDS: integers(batch, step),
            engine_io.POSITION_IDS: integers(batch, step),
            engine_io.ATTENTION_MASK: mask,
            engine_io.WRITE_INDICES: integers(batch),
            engine_io.KEPT_ROWS: integers(batch, kept),
        }
        self._places = torch.arange(batch, device=device)[:, None]
        self._offsets = torch.arange(step, device=device)
        self._outputs: dict[str, Tensor] = {}

    @torch.inference_mode()
    def run(self, inputs: StepInputs) -> Mapping[str, FloatArray]:
        """Run one step; see `Executor.run`."""
        for name, array in inputs.arrays.items():
            self._inputs[name].copy_(torch.from_numpy(array))
        if self._graph_pool is not None and self._graph is None and self._uses >= EAGER_STEPS:
            self._graph = self._captured_if_possible()
        if self._graph is None:
            self._outputs = self._compute()
        else:
            self._graph.replay()
        self._uses += 1
        return self._on_host()

    def _on_host(self) -> dict[str, FloatArray]:
        """Copies of the outputs, which the next step overwrites.

        From a GPU into pinned memory, which it writes by itself: the logits of 64 candidates are
        megabytes, and copied through pageable memory they take longer than the step.
        """
        on_gpu = self._places.is_cuda
        host = {
            name: torch.empty(output.shape, dtype=torch.float32, pin_memory=on_gpu)
            for name, output in self._outputs.items()
        }
        for name, output in self._outputs.items():
            host[name].copy_(output, non_blocking=True)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return {name: copy.numpy() for name, copy in host.items()}

    def _compute(self) -> dict[str, Tensor]:
        """The kernels of a step, from the input buffers to new outputs."""
        inputs = self._inputs
        slots = inputs[engine_io.WRITE_INDICES][:, None] + self._offsets
        memory = [one for block in self._blocks for one in block[:, : self._places.shape[0]]]
        layers: list[Any] = [
            SlotLayer(keys, values, self._places, slots)
            for keys, values in zip(memory[::2], memory[1::2], strict=True)
        ]
        decoded = self._model.base.base_model(
            input_ids=inputs[engine_io.INPUT_IDS],
            position_ids=inputs[engine_io.POSITION_IDS],
            attention_mask=self._masks(slots),
            past_key_values=Cache(layers=layers),
            use_cache=True,
        )
        state = decoded.last_hidden_state[self._places, inputs[engine_io.KEPT_ROWS]]
        channel = state[..., -self._model.config.hidden_size :]
        outputs = {engine_io.LOGITS: base_logits(self._model.base, state).float()}
        for signal in self._model.config.signals:
            outputs[signal.name] = self._model.head(signal.name).output(channel).float()
        return outputs

    def _masks(self, slots: Tensor) -> Any:
        """The mask as the layers read it.

        Slot i of a prefix holds position i; the rows of a step hold the positions of the step.
        """
        mask, positions = (
            self._inputs[engine_io.ATTENTION_MASK],
            self._inputs[engine_io.POSITION_IDS],
        )

        def distances() -> Tensor:
            keys = torch.arange(mask.shape[3], device=mask.device).repeat(mask.shape[0], 1)
            keys[self._places, slots] = positions
            return positions[:, None, :, None] - keys[:, None, None, :]

        return layer_masks(self._model, mask, distances, self._blocks[0].dtype)

    def _captured_if_possible(self) -> Any:
        """A CUDA graph; None, from now on, if the model does what cannot be captured."""
        try:
            return self._captured()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # As a rotary embedding does that asks for the largest position on the host.
            self._graph_pool = None
            return None

    def _captured(self) -> Any:
        """A CUDA graph of `_compute`, whose outputs it then fills; needs a GPU.

        Capturing runs nothing. Libraries set themselves up on a first run, which must not be
        captured, and must be on a side stream. It writes the rows that the step writes anyway.
        """
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU for something else meanwhile.
        with torch.cuda.graph(graph, pool=self._graph_pool, capture_error_mode="thread_local"):
            self._outputs = self._compute()
        return graph

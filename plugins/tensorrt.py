"""The fused projection as a TensorRT plugin: one source for ``tensorrt`` and ``tensorrt_rtx``.

`register` makes op ``OtterLinear`` of domain ``com.otter`` known to a TensorRT library; do it
before an ONNX file is parsed and again, in the process that runs the engine, before it is
deserialised.

The node that is accepted::

    y, y' = com.otter.OtterLinear<plugin_namespace = "com.otter", plugin_version = "1">(
        x [.., in], x' [.., in'], W [out, in], A [out', in], B [out', in'], b [out], b' [out'])

with both of b and b' or neither, all tensors of one type, float16 or bfloat16, and the leading
dimensions of x and x' equal. y is [.., out], y' is [.., out']. The weights are inputs like any
other: initialisers in ONNX, constants in TensorRT. Without the attribute ``plugin_namespace`` the
parser prefers a model-local function of the same name, if there is one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from otter_export.errors import EngineError
from otter_export.plugins.cubin_index import CubinIndex
from otter_export.plugins.loaded_kernels import KernelLoader, LoadedKernels
from otter_export.plugins.tiles import Widths

NAMESPACE = "com.otter"
NAME = "OtterLinear"
VERSION = "1"
#: Weights with and without the two biases, after x and x'.
INPUT_COUNTS = (5, 7)

#: One creator for each TensorRT library of the process; it must outlive every engine.
_CREATORS: dict[str, Any] = {}


def register(trt: Any, cubin_directory: Path | None) -> None:
    """Make the plugin known to a TensorRT library; may be called again for another engine.

    Args:
        trt: The module ``tensorrt`` or ``tensorrt_rtx``.
        cubin_directory: Compiled kernels (`build_cubins`), for engines that are deserialised after
            this call. None is enough to build for other devices: such a plugin cannot run.

    Raises:
        EngineError: The directory has no valid index, or TensorRT refuses the plugin.
    """
    loader = None if cubin_directory is None else KernelLoader(CubinIndex.load(cubin_directory))
    creator = _CREATORS.get(trt.__name__)
    if creator is None:
        creator = _creator_class(trt)()
        if not trt.get_plugin_registry().register_creator(creator, NAMESPACE):
            raise EngineError(
                f"{trt.__name__} {trt.__version__} refused the plugin {NAMESPACE}::{NAME}: another "
                "library has registered this name; unload it, or build with --no-plugin"
            )
        _CREATORS[trt.__name__] = creator
    creator.loader = loader


def _creator_class(trt: Any) -> type[Any]:
    """The creator for one TensorRT library: its base class is that library's."""
    plugin_class = _plugin_class(trt)

    class OtterLinearCreator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        """Makes plugins for nodes of an ONNX file and for layers of an engine."""

        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name = NAME
            self.plugin_namespace = NAMESPACE
            self.plugin_version = VERSION
            self.field_names = trt.PluginFieldCollection([])
            self.loader: KernelLoader | None = None

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            """A plugin; its sizes and its type follow from its inputs, so it has no attributes."""
            return plugin_class(self.loader)

    return OtterLinearCreator


def _plugin_class(trt: Any) -> type[Any]:
    """The plugin for one TensorRT library."""
    dtypes = {trt.float16: "float16", trt.bfloat16: "bfloat16"}

    interfaces: tuple[Any, ...] = (
        *(trt.IPluginV3, trt.IPluginV3OneCore),
        *(trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime),
    )

    class OtterLinear(*interfaces):  # type: ignore[misc]
        """One fused projection."""

        def __init__(self, loader: KernelLoader | None) -> None:
            for interface in interfaces:
                interface.__init__(self)
            self.plugin_name = NAME
            self.plugin_namespace = NAMESPACE
            self.plugin_version = VERSION
            self.num_outputs = 2
            self.loader = loader
            self.kernels: LoadedKernels | None = None

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return OtterLinear(self.loader)

        # Building.

        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            if set(input_types) not in ({trt.float16}, {trt.bfloat16}):
                given = ", ".join(str(one) for one in input_types)
                raise ValueError(f"{NAME} takes float16 or bfloat16, all alike; got {given}")
            return [input_types[0], input_types[0]]

        def get_output_shapes(
            self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any
        ) -> list[Any]:
            if len(inputs) not in INPUT_COUNTS:
                raise ValueError(f"{NAME} has {len(inputs)} inputs; accepted are 5 or 7 (biases)")
            x, weight, from_base = inputs[0], inputs[2], inputs[3]
            leading = [x[axis] for axis in range(len(x) - 1)]
            return [trt.DimsExprs([*leading, w[0]]) for w in (weight, from_base)]

        def supports_format_combination(
            self, position: int, tensors: Sequence[Any], input_count: int
        ) -> bool:
            tensor, first = tensors[position].desc, tensors[0].desc
            is_dense = tensor.format == trt.TensorFormat.LINEAR
            return is_dense and first.type in dtypes and tensor.type == first.type

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            pass

        # Running.

        def get_fields_to_serialize(self) -> Any:
            return trt.PluginFieldCollection([])

        def attach_to_context(self, resources: Any) -> Any:
            return self.clone()

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            # Loading is not possible while a CUDA graph is captured, and this comes before.
            if self.loader is not None:
                self.kernels = self.loader.load(dtypes[inputs[0].type])

        def enqueue(
            self,
            inputs: Sequence[Any],
            outputs: Sequence[Any],
            input_pointers: Sequence[int],
            output_pointers: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            if self.loader is None:
                raise EngineError("the fused projection was registered without kernels to run")
            if self.kernels is None:
                self.kernels = self.loader.load(dtypes[inputs[0].type])
            dims = [tuple(tensor.dims) for tensor in inputs]
            widths = Widths(dims[0][-1], dims[1][-1], dims[2][0], dims[3][0])
            biases = input_pointers[5:] if len(inputs) == 7 else (0, 0)
            self.kernels.launch(
                math.prod(dims[0][:-1]),
                widths,
                (*input_pointers[:5], *biases, *output_pointers),
                stream,
            )

    return OtterLinear

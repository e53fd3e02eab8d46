"""The fused projection ``y = W x + b``, ``y' = A x + B x' + b'``: the kernel and its hosts.

========================  ====================================================================
`tiles`                   Tile sizes, and which one a launch uses
`otter_linear`            The kernel, in OpenAI Triton, and its just-in-time launch
`cubins`, `cubin_index`   Ahead of time: compiled kernels and their index (``otter_linear.json``)
`loaded_kernels`          The kernels of an engine on a device, through `otter_export.cuda`
`tensorrt`                The plugin for ``tensorrt`` and ``tensorrt_rtx``
`torch_op`                The operator ``otter::linear``
``cpp/``, `cpp_table`     The plugin in C++, with the same compiled kernels inside
========================  ====================================================================
"""

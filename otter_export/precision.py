"""The precisions of every pipeline: what they compute in, and how the base's weights are stored.

A value of a table below is all that a precision is. Targets offer their names to the command line,
a pipeline looks the name up and hands each pass its part. A leaf: ``list targets`` reads it without
any library that builds graphs. Of the channel only the parts that read the base are ever quantised:
they are nearly all of it. What reads the channel, and the signal heads, never are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from otter_export.errors import UnsupportedError


class Dtype(NamedTuple):
    """A float type in the words of mobius-onnx, of numpy and torch, and of safetensors."""

    hub: str
    name: str
    safetensors: str


FLOAT32 = Dtype("f32", "float32", "F32")
FLOAT16 = Dtype("f16", "float16", "F16")
BFLOAT16 = Dtype("bf16", "bfloat16", "BF16")


@dataclasses.dataclass(frozen=True)
class WeightFormat:
    """How the codes of a weight ``[out, in]`` are stored.

    Args:
        bits: 8 or 4.
        block: Weights along ``in`` that share a scale; None gives each row of ``out`` one.
        symmetric: Zero is the middle code; else every block has a zero point of its own, and its
            codes span just the block's range, which matters where there are few of them.
    """

    bits: int
    block: int | None
    symmetric: bool = True

    def dividing(self, widths: Collection[int]) -> WeightFormat:
        """With a block that divides all widths, if one of half its size does.

        A block that does not divide a width is padded. And of blocks of 64, ONNX Runtime's int8
        kernels treat every row alike, so a step of one row needs no second one; of 128 they do not.
        """
        whole = self.block is not None and not any(width % self.block for width in widths)
        if self.bits != 8 or self.block is None or whole:
            return self
        half = self.block // 2
        return dataclasses.replace(
            self, block=self.block if any(w % half for w in widths) else half
        )

    def block_of(self, columns: int) -> int | None:
        """The largest halved block, at least 16, that divides a width; None if there is none.

        For formats whose blocks are not padded.
        """
        block = columns if self.block is None else self.block
        while columns % block and block > _SMALLEST_BLOCK:
            block //= 2
        return None if columns % block else block


#: TensorRT has int4 kernels for blocks of 16 to 128.
_SMALLEST_BLOCK = 16


@dataclasses.dataclass(frozen=True)
class Precision:
    """One precision of one pipeline.

    Args:
        name: As ``--precision`` has it.
        dtype: Of activations, of caches and of weights for which nothing else is said.
        projections: Codes of the base's projections; None stores them in ``dtype``.
        inner: Codes of the projections that read the inner width.
        head: Codes of the language model head.
        half: What is stored in float16 and computed in ``dtype``.
        from_base: Codes of the channel's parts that read the base, ``A``.
    """

    name: str
    dtype: Dtype
    projections: WeightFormat | None = None
    inner: WeightFormat | None = None
    head: WeightFormat | None = None
    half: Literal["matrices", "embedding"] | None = None
    from_base: WeightFormat | None = None

    def dividing(self, widths: Collection[int]) -> Precision:
        """With the blocks of `WeightFormat.dividing` for these widths."""
        names = ("projections", "inner", "head", "from_base")
        stored = {name: getattr(self, name) for name in names}
        return dataclasses.replace(
            self, **{name: form and form.dividing(widths) for name, form in stored.items()}
        )


Precisions = Mapping[str, Precision]


def _table(*precisions: Precision) -> Precisions:
    return {precision.name: precision for precision in precisions}


#: Of MatMulNBits: blocks of 128 are 25 % faster than 32 at eight rows a step. 8 bits for the head,
#: then zero points, help int4 most (docs/graph.md has numbers).
_ORT_8 = WeightFormat(8, 128)
_ORT_4 = WeightFormat(4, 128, symmetric=False)
#: TensorRT has no zero points for weights. The projections that read the inner width are a quarter
#: of the weights and most of the error of 4 bits.
_TRT_8 = WeightFormat(8, None)
_TRT_4 = WeightFormat(4, 32)

#: ONNX Runtime by execution provider. A CPU computes in float32 whatever is stored.
ONNX_RUNTIME: Mapping[str, Precisions] = {
    "cpu": _table(
        Precision("fp32", FLOAT32),
        Precision("fp16", FLOAT32, half="matrices"),
        Precision("int8", FLOAT32, _ORT_8, _ORT_8, _ORT_8, "embedding", _ORT_8),
        Precision("int4", FLOAT32, _ORT_4, _ORT_4, _ORT_8, "embedding", _ORT_8),
    ),
    "cuda": _table(Precision("fp32", FLOAT32), Precision("fp16", FLOAT16)),
}
#: TensorRT: weights alone are quantised; the rest is half precision.
TENSORRT = _table(
    Precision("fp16", FLOAT16),
    Precision("bf16", BFLOAT16),
    Precision("int8", FLOAT16, _TRT_8, _TRT_8, _TRT_8),
    Precision("int4", FLOAT16, _TRT_4, _TRT_8, _TRT_8),
)
#: TensorRT-LLM, both routes; fp32 is for comparisons.
TENSORRT_LLM = _table(
    Precision("fp16", FLOAT16), Precision("bf16", BFLOAT16), Precision("fp32", FLOAT32)
)


def choose_precision(precisions: Precisions, name: str, where: str) -> Precision:
    """The precision of that name.

    Args:
        precisions: What there is.
        name: As given on the command line.
        where: Target or builder, for the message.

    Raises:
        UnsupportedError: There is none of that name.
    """
    if name not in precisions:
        raise UnsupportedError(
            f"--precision {name} is not available for {where}; available: {', '.join(precisions)}"
        )
    return precisions[name]

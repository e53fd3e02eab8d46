"""L2: the reference keeps its values with the fused projection's operator."""

from __future__ import annotations

from pathlib import Path

import torch

from otter_export.checkpoint import Checkpoint
from otter_export.modeling.fused_projections import FusedProjection, use_fused_projections
from otter_export.modeling.layers import WidenedProjection
from otter_export.modeling.otter_model import load_reference


def test_reference_with_fused_projections(tiny_checkpoint: Path) -> None:
    model = load_reference(Checkpoint.open(tiny_checkpoint)).to(torch.bfloat16).eval()
    ids = torch.arange(1, 9).reshape(2, 4)
    with torch.no_grad():
        plain = model(ids)
        names = {name for name, _ in model.named_parameters()}
        changed = use_fused_projections(model)
        fused = model(ids)
    # q, k, v, o, gate, up and down of every layer.
    layers = model.base.config.num_hidden_layers
    assert changed == 7 * layers
    assert sum(type(m) is FusedProjection for m in model.modules()) == changed
    assert {name for name, _ in model.named_parameters()} == names
    assert torch.equal(fused.logits, plain.logits)  # base values do not change at all
    for name, values in plain.signals.items():
        # bfloat16: three significant digits; the fused form rounds less often.
        torch.testing.assert_close(fused.signals[name], values, rtol=3e-2, atol=3e-2)
    assert use_fused_projections(model) == 0


def test_it_is_for_inference(tiny_checkpoint: Path) -> None:
    model = load_reference(Checkpoint.open(tiny_checkpoint)).to(torch.bfloat16)
    use_fused_projections(model)
    projection = next(m for m in model.modules() if isinstance(m, FusedProjection))
    x = torch.randn(2, projection.widths.base_in + projection.widths.channel_in).bfloat16()
    out = projection(x)
    assert torch.equal(out, WidenedProjection.forward(projection, x))
    assert out.requires_grad  # as before: the operator itself has no gradient

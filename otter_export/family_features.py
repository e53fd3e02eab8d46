"""Features of a base family in words, read from its table."""

from __future__ import annotations

from otter_export.family import Family, Rotation, Space

_SOFT_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_SCALES = ("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale")


def features(family: Family) -> tuple[str, ...]:
    """What sets a family's layers apart, beyond attention and a feed-forward."""
    norms = [norm.axis is None for norm in family.head_norms]
    gates = sum(p.reads is Space.HIDDEN and p.writes is Space.INNER for p in family.projections)
    found = {
        "LayerNorm": family.layer_norm,
        f"weights of norms plus {family.norm_offset:g}": family.norm_offset,
        "a norm of each head": norms and not all(norms),
        "a norm over all heads": norms and all(norms),
        "windows": family.windowed,
        "soft caps": any(key in family.settings for key in _SOFT_CAPS),
        "scales": any(key in family.settings for key in _SCALES),
        "scaled embedding": family.scaled_embedding,
        "learned positions": len(family.embeddings) > 1,
        "neighbours rotated": family.interleaved,
        "part of a head rotated": family.partial_rotation,
        "layers without rotation": family.rotation not in (Rotation.ALL, Rotation.NONE),
        "fused projections": any(p.part is not None for p in family.projections),
        "no gate": gates == 1,
    }
    return tuple(name for name, present in found.items() if present)

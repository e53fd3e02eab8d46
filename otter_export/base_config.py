"""A base's ``config.json``, checked before a library reads it.

Types and ranges of every value that a model depends on are checked here; what no model depends on
(labels, dropout, generation settings) never reaches a library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from otter_export.config import read_json
from otter_export.errors import CheckpointError, ConfigError, UnsupportedError
from otter_export.family import MAX_POSITIONS, BaseDimensions, Family
from otter_export.files import is_file
from otter_export.size_defaults import SIZE_KEYS, default_sizes
from otter_export.wrappers import WRAPPERS, text_settings

FILE_NAME = "config.json"
GENERATION_FILE = "generation_config.json"

#: Rotary scalings with one table for all lengths (tests/graph/test_rotary.py compares each). That
#: of ``longrope`` is for sequences up to its original length, ``dynamic`` has none.
FAITHFUL_SCALINGS = ("default", "linear", "llama3", "yarn", "longrope")
#: Activations that every graph computes as transformers does (tests/converters/test_parity.py).
FAITHFUL_ACTIVATIONS = (
    *("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
    *("relu", "relu2", "quick_gelu", "sigmoid", "tanh", "linear"),
)
_ROPE_KEYS = ("rope_parameters", "rope_scaling")
_PARTIAL = ("partial_rotary_factor", "rotary_pct")
_ORIGINAL = "original_max_position_embeddings"
#: Kinds of layers that attention is built for.
_LAYER_TYPES = ("full_attention", "sliding_attention")

#: Numbers by key: smallest and largest. Integers become floats, which libraries insist on.
_NUMBERS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
        (1e-20, 0.1),
    ),
    **dict.fromkeys(("rope_theta", "rotary_emb_base"), (1.0, 1e15)),
    **dict.fromkeys(("logit_scale", "logits_scaling", "embedding_multiplier"), (1e-6, 1e6)),
    **dict.fromkeys(("residual_multiplier", "attention_multiplier"), (1e-6, 1e6)),
    **dict.fromkeys(_PARTIAL, (1e-3, 1.0)),
    "rope_local_base_freq": (1.0, 1e15),
}
#: Numbers that may be null: none.
_CAPS: Mapping[str, tuple[float, float]] = dict.fromkeys(
    ("final_logit_softcapping", "attn_logit_softcapping"), (1e-3, 1e6)
)
#: Integers by key; null is none.
_INTEGERS: Mapping[str, tuple[int, int]] = {
    "sliding_window": (1, 1 << 31),
    "query_pre_attn_scalar": (1, 1 << 20),
    "max_window_layers": (0, 1 << 31),
    "no_rope_layer_interval": (1, 1 << 31),
    "sliding_window_pattern": (1, 1 << 31),
    _ORIGINAL: (1, MAX_POSITIONS),
}
#: The same inside of rotary settings.
_ROPE_NUMBERS: Mapping[str, tuple[float, float]] = {
    "rope_theta": _NUMBERS["rope_theta"],
    "factor": (1e-3, 1e6),
    "low_freq_factor": (1e-3, 1e6),
    "high_freq_factor": (1e-3, 1e6),
    **dict.fromkeys(("beta_fast", "beta_slow", "mscale", "mscale_all_dim"), (0.0, 1e6)),
    **dict.fromkeys(("attention_factor", "llama_4_scaling_beta"), (0.0, 1e6)),
    **dict.fromkeys(_PARTIAL, (1e-3, 1.0)),
}
_ROPE_REQUIRED = {
    "linear": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    ),
}
_SWITCHES = (
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "use_bias", "use_sliding_window"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
    *("add_cross_attention", "attention_out_bias", "use_qkv_bias", "use_qk_norm", "qk_layernorm"),
    *("use_parallel_residual", "parallel_attn"),
)
_ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation")


def read_config(directory: Path) -> tuple[dict[str, Any], str | None]:
    """The checked ``config.json`` of a base; numbers are floats where the model has floats.

    Returns:
        The text model's settings, and the ``model_type`` of the wrapper around it or None.

    Raises:
        CheckpointError: There is none; says what the directory holds instead.
        ConfigError: Values have a wrong type or are out of range; all are listed.
        UnsupportedError: A setting that no target builds.
    """
    path = directory / FILE_NAME
    if not is_file(path, CheckpointError):
        raise CheckpointError(f"{path} does not exist: {_what_lies_in(directory)}")
    data = read_json(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    model_type = str(data.get("model_type"))
    wrapper = WRAPPERS.get(model_type)
    text = data if wrapper is None else text_settings(data, wrapper, str(path))
    if any(part.get("quantization_config") is not None for part in (data, text)):
        raise UnsupportedError(
            f"{path} has a quantization_config; the base must be plain F32, F16 or BF16 "
            "weights. Take the unquantised model, and quantise with build --precision int8"
        )
    return checked(text, str(path)), None if wrapper is None else model_type


def completed(data: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """A config.json with what transformers takes for the keys that it leaves out."""
    sizes = default_sizes(data["model_type"])
    renamed = {family.config_keys.get(key, key): value for key, value in sizes.items()}
    return {**renamed, **family.defaults, **data}


def checked(data: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Check the values of a parsed ``config.json``, but for the sizes; see `read_config`."""
    values = dict(data)
    if values.get("layer_types") is not None:
        values.pop("sliding_window_pattern", None)  # said twice, and a word in EXAONE 4's files
    problems = list(_wrong_values(values))
    for key in _ROPE_KEYS:
        if values.get(key) is not None:
            values[key] = _rope(values[key], key, source, problems)
    if problems:
        raise ConfigError(f"{source}: " + "; ".join(problems))
    for key in _ACTIVATIONS:
        if key == "hidden_activation" and values.get(key) is None:
            continue  # Gemma's files have it beside the other
        if key in values and values[key] not in FAITHFUL_ACTIVATIONS:
            raise UnsupportedError(
                f"{source}: {key} = {_shown(values[key])} is not supported; "
                f"accepted: {', '.join(FAITHFUL_ACTIVATIONS)}"
            )
    return values


def check_family_settings(data: Mapping[str, Any], family: Family, source: str) -> None:
    """Refuse settings that the family's model does not have, or that no graph computes.

    Raises:
        ConfigError: A list has another length than there are layers.
        UnsupportedError: Names the setting.
    """
    layers = data.get(family.config_keys.get("num_hidden_layers", "num_hidden_layers"))
    kinds, accepted = data.get("layer_types"), _LAYER_TYPES if family.windowed else _LAYER_TYPES[:1]
    if kinds is not None and (not isinstance(kinds, list) or set(map(str, kinds)) - set(accepted)):
        raise UnsupportedError(
            f"{source}: layer_types must all be {' or '.join(map(repr, accepted))} in a "
            f"{family.name} base"
        )
    for key in ("layer_types", "no_rope_layers"):
        values = data.get(key)
        if (
            key in family.settings
            and values is not None
            and (not isinstance(values, list) or len(values) != layers)
        ):
            raise ConfigError(f"{source}: {key} must list {layers} layers")
    if not family.partial_rotation:
        settings = [data.get(key) for key in _ROPE_KEYS]
        for where in (data, *(s for s in settings if isinstance(s, Mapping))):
            factor = next((where[key] for key in _PARTIAL if key in where), None)
            if factor not in (None, 1, 1.0):
                raise UnsupportedError(
                    f"{source}: a {family.name} model rotates whole heads; partial_rotary_factor "
                    f"is {_shown(factor)}"
                )


def library_config(
    data: Mapping[str, Any], family: Family, dimensions: BaseDimensions
) -> dict[str, Any]:
    """What transformers and mobius-onnx get as ``config.json``: checked values and no others.

    Sizes are written out, since the defaults of absent ones differ between libraries, and
    ``tie_word_embeddings`` is what the weights say.
    """
    announced = {} if family.biases is None else family.biases
    known = {
        *(*_NUMBERS, *_SWITCHES, *_ACTIVATIONS, *_ROPE_KEYS, "model_type", "architectures"),
        *(key for key, _, _ in family.refused),
        *(key for _, key in family.embeddings),
        *(key for key in announced.values() if isinstance(key, str)),
        *family.settings,
        *(("sliding_window",) if family.windowed else ()),
        *((_ORIGINAL,) if data.get(_ORIGINAL) is not None else ()),
    }
    sizes = {family.config_keys.get(name, name): getattr(dimensions, name) for name in SIZE_KEYS}
    if original_length(data, family) is not None:
        # transformers takes the scores' factor from how much longer the model is now.
        del sizes["max_position_embeddings"]
        known.add("max_position_embeddings")
    kept = {key: value for key, value in data.items() if key in known}
    return {**kept, **sizes, "tie_word_embeddings": dimensions.tie_word_embeddings}


def original_length(data: Mapping[str, Any], family: Family) -> int | None:
    """The longest sequence that the short factors of ``longrope`` are for; None for other bases.

    Longer ones rotate by other tables from their first token on, which no engine can know.
    """
    outside = data.get(_ORIGINAL) or family.defaults.get(_ORIGINAL)
    lengths: list[Any] = []
    for settings in (data.get(key) for key in _ROPE_KEYS):
        if not isinstance(settings, Mapping):
            continue
        if _scaling(settings) == "longrope":
            lengths.append(outside or settings.get(_ORIGINAL))
        kinds = (settings.get(kind) for kind in _LAYER_TYPES)
        lengths += [
            kind.get(_ORIGINAL)
            for kind in kinds
            if isinstance(kind, Mapping) and _scaling(kind) == "longrope"
        ]
    return min((length for length in lengths if length is not None), default=None)


def special_tokens(
    directory: Path, data: Mapping[str, Any], vocab_size: int
) -> tuple[int | None, tuple[int, ...]]:
    """``(bos, eos ids)``: generation_config.json where it says so, else config.json.

    Raises:
        ConfigError: generation_config.json is no JSON object.
    """
    path = directory / GENERATION_FILE
    generation = read_json(path) if is_file(path, ConfigError) else {}
    if not isinstance(generation, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(generation).__name__}")
    values = {**data, **{k: v for k, v in generation.items() if v is not None}}

    def valid(value: object) -> TypeGuard[int]:
        return type(value) is int and 0 <= value < vocab_size

    eos, bos = values.get("eos_token_id"), values.get("bos_token_id")
    listed = eos if isinstance(eos, list) else [eos]
    return (bos if valid(bos) else None), tuple(i for i in listed if valid(i))


def _wrong_values(values: dict[str, Any]) -> Iterator[str]:
    """Check numbers and switches; numbers are made floats in place."""
    yield from _numbers(values, _NUMBERS, "")
    caps = {key: limits for key, limits in _CAPS.items() if values.get(key) is not None}
    yield from _numbers(values, caps, "")
    for key, (least, most) in _INTEGERS.items():
        value = values.get(key)
        if value is not None and (type(value) is not int or not least <= value <= most):
            yield f"{key} must be an integer from {least} to {most}, got {_shown(value)}"
    listed = values.get("no_rope_layers")
    if listed is not None and not (
        isinstance(listed, list) and all(type(v) is int and v in (0, 1) for v in listed)
    ):
        yield f"no_rope_layers must be a list of 0 and 1, got {_shown(listed)}"
    for key in _SWITCHES:
        if key in values and type(values[key]) is not bool:
            yield f"{key} must be true or false, got {_shown(values[key])}"
    architectures = values.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        yield f"architectures must be a list of names, got {_shown(architectures)}"


def _numbers(
    values: dict[str, Any], ranges: Mapping[str, tuple[float, float]], where: str
) -> Iterator[str]:
    for key, (low, high) in ranges.items():
        if key not in values:
            continue
        value = values[key]
        if value is None and key in _ROPE_NUMBERS:
            del values[key]  # null is the default there, as newer transformers write it
        elif type(value) not in (int, float) or not low <= value <= high:
            yield f"{where}{key} must be a number from {low:g} to {high:g}, got {_shown(value)}"
        else:
            values[key] = float(value)


def _rope(settings: object, key: str, source: str, problems: list[str]) -> object:
    """Rotary settings with their numbers checked: one for all layers, or one for each kind.

    transformers reads them by kind where its model has kinds of layers, and else what lies beside
    them, so both are checked and kept.

    Raises:
        UnsupportedError: A kind of scaling that would not be built faithfully.
    """
    if not isinstance(settings, Mapping):
        return _flat_rope(settings, key, source, problems)
    kinds = {
        kind: None if one is None else _flat_rope(one, f"{key}.{kind}", source, problems)
        for kind, one in settings.items()
        if kind in _LAYER_TYPES
    }
    beside = {name: value for name, value in settings.items() if not isinstance(value, Mapping)}
    return {**_flat_rope(beside, key, source, problems), **kinds}


def _flat_rope(settings: object, key: str, source: str, problems: list[str]) -> dict[str, Any]:
    """The settings of one kind of layers, or of all; see `_rope`."""
    kind = _scaling(settings)
    if not isinstance(settings, Mapping) or kind not in FAITHFUL_SCALINGS:
        raise UnsupportedError(
            f"{source}: {key} asks for rotary scaling {_shown(kind)}; "
            f"built faithfully: {', '.join(FAITHFUL_SCALINGS)}"
        )
    values = {**settings, **({"rope_type": kind} if kind == "longrope" else {})}
    where = f"{key}."
    problems += [
        f"{where}{name} is missing, which scaling {kind} needs"
        for name in _ROPE_REQUIRED.get(str(kind), ())
        if values.get(name) is None
    ]
    problems += _numbers(values, _ROPE_NUMBERS, where)
    for name in (_ORIGINAL, "max_position_embeddings"):
        original = values.get(name, 1)
        if type(original) is not int or not 1 <= original <= MAX_POSITIONS:
            problems.append(
                f"{where}{name} must be an integer from 1 to {MAX_POSITIONS}, got "
                f"{_shown(original)}"
            )
    for name in ("short_factor", "long_factor"):
        factors = values.get(name, [])
        if not isinstance(factors, list) or not all(
            type(f) in (int, float) and 0 < f <= 1e6 for f in factors
        ):
            problems.append(f"{where}{name} must be a list of positive numbers")
    if type(values.get("truncate", True)) is not bool:
        problems.append(f"{where}truncate must be true or false, got {_shown(values['truncate'])}")
    return values


def _scaling(settings: object) -> object:
    """``rope_type``; Phi-3's first files have other names for ``longrope``."""
    if not isinstance(settings, Mapping):
        return settings
    kind = settings.get("rope_type", settings.get("type", "default"))
    renamed = kind == "su" or (kind == "yarn" and "short_factor" in settings)
    return "longrope" if renamed else kind


def _shown(value: object) -> str:
    """A value of somebody's file, cut for a message."""
    return f"{value!r:.60}"


def _what_lies_in(directory: Path) -> str:
    """What a directory holds that is no base, and where one may be."""
    nested = sorted(str(p.parent) for p in directory.glob(f"*/{FILE_NAME}"))
    if nested:
        return f"models lie in its subfolders; give one of them: {', '.join(nested[:5])}"
    found = sorted(p.name for p in directory.iterdir())
    if any(name.endswith(".gguf") for name in found):
        return "the directory holds GGUF files; a base is a Hugging Face directory with safetensors"
    if not found:
        return "the directory is empty"
    more = f" and {len(found) - 5} more" if found[5:] else ""
    listed = f"{', '.join(found[:5])}{more}"
    return f"the directory holds {listed}; a base is a Hugging Face model directory"

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

FILE_NAME = "config.json"
GENERATION_FILE = "generation_config.json"

#: Rotary scalings whose tables equal transformers' (tests/graph/test_rotary.py compares each).
#: For others (``yarn``, ``dynamic``, ``longrope``) mobius-onnx's tables, or the idea of one table
#: for all lengths, differ.
FAITHFUL_SCALINGS = ("default", "linear", "llama3")
#: Activations that every graph computes as transformers does (tests/converters/test_parity.py).
FAITHFUL_ACTIVATIONS = (
    *("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
    *("relu", "relu2", "quick_gelu", "sigmoid", "tanh", "linear"),
)
_ROPE_KEYS = ("rope_parameters", "rope_scaling")
_PARTIAL = "partial_rotary_factor"

#: Numbers by key: smallest and largest. Integers become floats, which libraries insist on.
_NUMBERS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
        (1e-20, 0.1),
    ),
    "rope_theta": (1.0, 1e15),
}
#: The same inside of rotary settings.
_ROPE_NUMBERS: Mapping[str, tuple[float, float]] = {
    "rope_theta": _NUMBERS["rope_theta"],
    "factor": (1e-3, 1e6),
    "low_freq_factor": (1e-3, 1e6),
    "high_freq_factor": (1e-3, 1e6),
}
_ROPE_REQUIRED = {
    "linear": ("factor",),
    "llama3": (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    ),
}
_SWITCHES = (
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "use_bias", "use_sliding_window"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
    "add_cross_attention",
)
_ACTIVATIONS = ("hidden_act", "activation_function")
_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"),
)


def read_config(directory: Path) -> dict[str, Any]:
    """The checked ``config.json`` of a base; numbers are floats where the model has floats.

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
    if data.get("quantization_config") is not None:
        raise UnsupportedError(
            f"{path} has a quantization_config; the base must be plain F32, F16 or BF16 "
            "weights. Take the unquantised model, and quantise with build --precision int8"
        )
    return checked(data, str(path))


def checked(data: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Check the values of a parsed ``config.json``, but for the sizes; see `read_config`."""
    values = dict(data)
    problems = list(_wrong_values(values))
    for key in _ROPE_KEYS:
        if values.get(key) is not None:
            values[key] = _rope(values[key], key, source, problems)
    if problems:
        raise ConfigError(f"{source}: " + "; ".join(problems))
    _check_factor(values.get(_PARTIAL), f"{source}: {_PARTIAL}")
    for key in _ACTIVATIONS:
        if key in values and values[key] not in FAITHFUL_ACTIVATIONS:
            raise UnsupportedError(
                f"{source}: {key} = {_shown(values[key])} is not supported; "
                f"accepted: {', '.join(FAITHFUL_ACTIVATIONS)}"
            )
    kinds = values.get("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list) or set(map(str, kinds)) - {"full_attention"}
    ):
        raise UnsupportedError(f"{source}: layer_types must all be 'full_attention'")
    return values


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
    }
    kept = {key: value for key, value in data.items() if key in known}
    sizes = {family.config_keys.get(name, name): getattr(dimensions, name) for name in _SIZES}
    return {**kept, **sizes, "tie_word_embeddings": dimensions.tie_word_embeddings}


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
    """Rotary settings with their numbers checked.

    Raises:
        UnsupportedError: A kind of scaling that would not be built faithfully.
    """
    kind = _scaling(settings)
    if not isinstance(settings, Mapping) or kind not in FAITHFUL_SCALINGS:
        raise UnsupportedError(
            f"{source}: {key} asks for rotary scaling {_shown(kind)}; "
            f"built faithfully: {', '.join(FAITHFUL_SCALINGS)}"
        )
    _check_factor(settings.get(_PARTIAL), f"{source}: {key}.{_PARTIAL}")
    values = dict(settings)
    where = f"{key}."
    problems += [
        f"{where}{name} is missing, which scaling {kind} needs"
        for name in _ROPE_REQUIRED.get(str(kind), ())
        if values.get(name) is None
    ]
    problems += _numbers(values, _ROPE_NUMBERS, where)
    original = values.get("original_max_position_embeddings", 1)
    if type(original) is not int or not 1 <= original <= MAX_POSITIONS:
        problems.append(
            f"{where}original_max_position_embeddings must be an integer from 1 to "
            f"{MAX_POSITIONS}, got {_shown(original)}"
        )
    return values


def _scaling(settings: object) -> object:
    """``rope_type``; tables per layer type are nested dictionaries and have no single one."""
    if not isinstance(settings, Mapping):
        return settings
    if any(isinstance(value, Mapping) for value in settings.values()):
        return "one per layer type"
    return settings.get("rope_type", settings.get("type", "default"))


def _check_factor(factor: Any, where: str) -> None:
    if factor not in (None, 1, 1.0):
        raise UnsupportedError(
            f"{where} is {_shown(factor)}; only whole heads are rotated here (1.0)"
        )


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

"""``otter-export inspect PATH``: what a checkpoint or an engine is, from headers only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from otter_export import inspection
from otter_export.channel import shape_words
from otter_export.cli.table import human_bytes, human_count, table
from otter_export.engine_digest import engine_digest
from otter_export.engine_io import TensorSpec
from otter_export.inspection import PARTS, CheckpointSummary, EngineSummary, Size, dtypes
from otter_export.manifest import EngineManifest
from otter_export.signals import Signal, kind_of


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--sha256", is_flag=True, help="Print an engine's digest alone, for `generate --sha256`."
)
def inspect(path: Path, as_json: bool, sha256: bool) -> None:
    """Show the checkpoint or engine at PATH. Reads headers only, and fetches nothing."""
    if sha256:
        click.echo(engine_digest(path))
        return
    summary = inspection.inspect(path)
    if as_json:
        click.echo(json.dumps(summary.to_json(), indent=1))
    elif isinstance(summary, CheckpointSummary):
        click.echo(_checkpoint(summary))
    else:
        click.echo(_engine(summary))


def _checkpoint(summary: CheckpointSummary) -> str:
    checkpoint = summary.checkpoint
    base, config = checkpoint.base.dimensions, checkpoint.config
    where = config.base_model_name_or_path or "beside the channel"
    if checkpoint.base.wrapper is not None:
        where = f"the text model of the {checkpoint.base.wrapper} at {where}"
    widths = [
        ["hidden", str(base.hidden_size), str(config.hidden_size)],
        ["inner", str(base.intermediate_size), str(config.intermediate_size)],
        ["query heads", str(base.num_attention_heads), str(config.num_attention_heads)],
        ["key/value heads", str(base.num_key_value_heads), str(config.num_key_value_heads)],
        ["head size", str(base.head_dim), str(config.head_dim)],
    ]
    facts = {
        "checkpoint": str(checkpoint.directory),
        "base": f"{checkpoint.base.family.name} family, model type {base.model_type}, {where}",
        "layers": str(base.num_hidden_layers),
        "vocabulary": str(base.vocab_size),
        "positions": str(base.max_position_embeddings),
        "channel": f"{shape_words(config, base.num_hidden_layers)}, "
        f"{config.initialization} initialisation",
        "inserted": f"{human_count(summary.inserted_total.parameters)} parameters, "
        f"{summary.share:.1%} of the base's {human_count(summary.base_total.parameters)}",
        "dtypes": f"base {_dtypes(dtypes(checkpoint.base.parameters))}; "
        f"channel {_dtypes(dtypes(checkpoint.tensors))}",
    }
    blocks = [
        _facts(facts),
        table(widths, ["width", "base", "channel"]),
        _signals(config.signals),
        _parts(summary),
    ]
    return "\n\n".join(blocks)


def _parts(summary: CheckpointSummary) -> str:
    def row(name: str, base: Size, inserted: Size) -> list[str]:
        share = inserted.parameters / base.parameters if base.parameters else None
        return [
            name,
            human_count(base.parameters),
            human_bytes(base.bytes),
            human_count(inserted.parameters),
            human_bytes(inserted.bytes),
            "" if share is None else f"{share:.1%}",
        ]

    rows = [
        row(part, summary.base.get(part, Size()), summary.inserted.get(part, Size()))
        for part in PARTS
        if part in summary.base or part in summary.inserted
    ]
    rows.append(row("total", summary.base_total, summary.inserted_total))
    return table(rows, ["part", "base", "size", "inserted", "size", "share"])


def _engine(summary: EngineSummary) -> str:
    m = summary.manifest
    total = sum(file.size for file in m.files)
    facts = {
        "engine": str(summary.directory),
        "target": f"{m.target}, {m.execution_provider}, {m.precision}, {m.cache_form} caches",
        "base": f"{m.base.get('model_type')}, {m.num_layers} layers, vocabulary {m.vocab_size}",
        "channel": _pairs(m.channel),
        "longest sequence": f"{m.max_sequence_length} tokens",
        "BOS, EOS": f"{m.bos_token_id}, {', '.join(map(str, m.eos_token_ids)) or 'none'}",
        "builder": _pairs(m.builder),
        "mends": ", ".join(m.mends),
        "source": _pairs(m.source),
        "options": _pairs({k: v for k, v in m.options.items() if k not in _TABLES}),
        "size": f"{human_bytes(total)} in {len(m.files)} files",
    }
    blocks = [
        _facts({name: text for name, text in facts.items() if text}),
        _signals(m.signals),
        table(list(_specs(m.inputs)), ["input", "dtype", "shape"]),
        table(list(_specs(m.outputs)), ["output", "dtype", "shape"]),
        *(show(m.options[name]) for name, show in _TABLES.items() if name in m.options),
        table(list(_files(m)), ["file", "size", "sha256"]),
    ]
    return "\n\n".join(blocks)


def _files(manifest: EngineManifest) -> Iterable[list[str]]:
    """One row per file, and one for each folder of them."""
    folders: dict[str, list[int]] = {}
    for file in manifest.files:
        folder, separator, _ = file.path.rpartition("/")
        if separator:
            folders.setdefault(folder, []).append(file.size)
        else:
            yield [file.path, human_bytes(file.size), file.sha256[:12]]
    for folder, sizes in folders.items():
        yield [f"{folder}/ ({len(sizes)} files)", human_bytes(sum(sizes)), ""]


def _layers(counts: Any) -> str:
    """A row per kind of layer; what a manifest of another release may hold is not assumed."""
    rows = [[str(kind), str(count)] for kind, count in _items(counts)]
    return table(rows, ["layer", "count"])


def _profiles(profiles: Any) -> str:
    """A row per optimisation profile: ``batch 1-8, step 1-512``."""
    rows = []
    for profile in profiles if isinstance(profiles, list) else []:
        name, low, best, high = (_get(profile, key) for key in ("name", "min", "opt", "max"))
        ranges = [
            f"{size} {_get(low, size)}-{most} (best {_get(best, size)})"
            for size, most in _items(high)
        ]
        rows.append([str(name), ", ".join(ranges)])
    return table(rows, ["profile", "sizes"])


def _items(data: Any) -> Iterable[tuple[str, Any]]:
    return data.items() if isinstance(data, Mapping) else ()


def _get(data: Any, key: str) -> Any:
    return data.get(key, "?") if isinstance(data, Mapping) else "?"


#: Options of ``engine.json`` that have a table of their own.
_TABLES: dict[str, Callable[[Any], str]] = {"profiles": _profiles, "layers": _layers}


def _specs(specs: Iterable[TensorSpec]) -> Iterable[list[str]]:
    """One row per tensor; the layers' caches, which differ by number only, are one row."""
    seen: dict[tuple[str, str, str], int] = {}
    for spec in specs:
        name = ".".join("N" if part.isdecimal() else part for part in spec.name.split("."))
        shape = "[" + ", ".join(map(str, spec.shape)) + "]"
        key = (name, spec.dtype, shape)
        seen[key] = seen.get(key, 0) + 1
    for (name, dtype, shape), count in seen.items():
        yield [name if count == 1 else f"{name} (N < {count})", dtype, shape]


def _signals(signals: Iterable[Signal]) -> str:
    rows = [
        [s.name, _kind(s), s.activation, "none" if s.bounds is None else str(list(s.bounds))]
        for s in signals
    ]
    return table(rows, ["signal", "kind", "activation", "bounds"])


def _kind(signal: Signal) -> str:
    """The kind, and what a signal that drafts can draft."""
    if not kind_of(signal).has_heads:
        return signal.kind
    tokens = "all tokens" if signal.draft_vocab is None else f"{signal.draft_vocab} tokens"
    blocks = ", residual" if signal.residual else ""
    return f"{signal.kind} ({signal.heads} x {tokens}{blocks})"


def _facts(facts: Mapping[str, str]) -> str:
    width = max(map(len, facts))
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in facts.items())


def _pairs(data: Mapping[str, Any]) -> str:
    """``name value, name value``; nested objects are flattened, hashes shortened."""
    texts = []
    for name, value in data.items():
        if isinstance(value, Mapping):
            texts.append(f"{name} ({_pairs(value)})")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            texts.append(f"{name} {text[:12] if _is_hash(text) else text}")
    return ", ".join(texts)


def _is_hash(text: str) -> bool:
    return len(text) == 64 and all(character in "0123456789abcdef" for character in text)


def _dtypes(sizes: Mapping[str, int]) -> str:
    if len(sizes) == 1:
        return next(iter(sizes))
    return ", ".join(f"{dtype} ({human_bytes(size)})" for dtype, size in sizes.items())

"""``otter-export insert BASE CKPT``: add an untrained (or shipped) channel to a base model."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from otter_export import config as config_file
from otter_export import insert as insertion
from otter_export.channel import shape_words
from otter_export.channel_options import ChannelOptions
from otter_export.cli.finite_range import FiniteRange
from otter_export.cli.progress import DELAY_SECONDS, byte_bar
from otter_export.cli.table import human_bytes, human_count, peak_memory
from otter_export.converters import TARGETS, refusals
from otter_export.errors import MissingDependencyError
from otter_export.insert import Insertion
from otter_export.modeling.tokenization import (
    difference_from_transformers,
    end_token_id,
    load_tokenizer,
)
from otter_export.probe import Probe
from otter_export.quoting import quoted
from otter_export.safetensors_io import WEIGHT_DTYPES
from otter_export.signals import SIGNALS, Signal, kind_of


def _is_count(text: str) -> bool:
    """Whether it is a number that Python reads; beyond 4,300 digits it does not."""
    return text.isdecimal() and len(text) < 20


class SignalType(click.ParamType):  # type: ignore[type-arg]
    """``NAME:KIND[:ACTIVATION[:HEADS[:TOKENS]]]``; the last two are of ``medusa`` signals.

    HEADS is the number of later tokens that it drafts; TOKENS how many of the vocabulary, the
    first ones, it can draft.
    """

    name = "NAME:KIND[:ACTIVATION]"

    def convert(self, value: Any, param: Any, ctx: click.Context | None) -> Signal:
        """Parse one ``--signal``; the name itself is checked with the whole config."""
        if isinstance(value, Signal):
            return value
        name, *rest = str(value).split(":")
        if not 1 <= len(rest) <= 4:
            self.fail(
                f"{quoted(value)}: expected NAME:KIND[:ACTIVATION[:HEADS[:TOKENS]]]", param, ctx
            )
        kind = SIGNALS.load(self._choice(value, "kind", rest[0], SIGNALS.names(), param, ctx))
        activation = rest[1] if len(rest) > 1 else kind.activations[0]
        self._choice(value, "activation", activation, kind.activations, param, ctx)
        heads = rest[2] if len(rest) > 2 else "1"
        if not _is_count(heads) or (not kind.has_heads and heads != "1"):
            self.fail(f"{quoted(value)}: HEADS is a number, of a medusa signal only", param, ctx)
        tokens = rest[3] if len(rest) > 3 else None
        if tokens is not None and not (_is_count(tokens) and kind.drafts):
            self.fail(f"{quoted(value)}: TOKENS is a number, of a medusa signal only", param, ctx)
        bounds = config_file.ACTIVATION_BOUNDS[activation]
        drafted = None if tokens is None else int(tokens)
        return Signal(name, kind.name, activation, bounds, int(heads), drafted)

    def _choice(
        self,
        value: object,
        what: str,
        given: str,
        accepted: tuple[str, ...],
        param: Any,
        ctx: click.Context | None,
    ) -> str:
        if given not in accepted:
            known = ", ".join(accepted)
            self.fail(
                f"{quoted(value)}: {what} {given!r} is not known; accepted: {known}", param, ctx
            )
        return given


@click.command()
@click.argument("base")
@click.argument("ckpt", type=click.Path(path_type=Path))
@click.option(
    "--hidden-size", type=click.IntRange(1), default=64, show_default=True, help="Width d'."
)
@click.option(
    "--intermediate-size",
    type=click.IntRange(1),
    help="Extra neurons m'. [default: the base's proportion, in steps of 64]",
)
@click.option(
    "--heads",
    type=click.IntRange(1),
    help="Extra query heads H'. [default: as many as the base has for each key/value head]",
)
@click.option(
    "--key-value-heads",
    type=click.IntRange(1),
    help="Extra key/value heads H'kv. [default: the fewest]",
)
@click.option(
    "--first-layer",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Layer that the channel begins at; the number of layers is a linear probe.",
)
@click.option(
    "--attention",
    type=click.Choice(config_file.ATTENTIONS),
    default="own",
    show_default=True,
    help="Queries and keys of the channel's own, or shared with the base.",
)
@click.option(
    "--init",
    "initialization",
    type=click.Choice(config_file.INITIALIZATIONS),
    default="copy",
    show_default=True,
    help="Initial values: a copy of base units, normal (0.02), uniform, or a linear map of the "
    "base's last state.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help="Of --init probe: texts (with scores for a value signal, labels for an expert pair) that "
    "map and heads are fitted to.  [default: a random map]",
)
@click.option(
    "--score-scale",
    type=FiniteRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Scores of --data are divided by this.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    help="Longer texts of --data are cut.",
)
@click.option(
    "--embedding",
    type=click.Choice(config_file.EMBEDDINGS),
    default="projection",
    show_default=True,
    help="x'0 from the base embedding, or from a table of its own.",
)
@click.option(
    "--signal",
    "signals",
    type=SignalType(),
    multiple=True,
    help="What the channel predicts; repeatable. [default: reward:value:tanh]",
)
@click.option(
    "--dtype",
    type=click.Choice(list(WEIGHT_DTYPES)),
    default="F32",
    show_default=True,
    help="Of the inserted tensors as stored.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--adapter", is_flag=True, help="Name the base in the checkpoint; do not copy it.")
@click.option(
    "--from",
    "replacements",
    type=click.Path(path_type=Path),
    metavar="FILE.safetensors",
    help="Trained tensors that replace initial ones.",
)
@click.option("--force", is_flag=True, help="Replace an existing checkpoint, after success.")
def insert(
    base: str,
    ckpt: Path,
    adapter: bool,
    replacements: Path | None,
    force: bool,
    data: Path | None,
    score_scale: float,
    max_tokens: int,
    **channel: Any,
) -> None:
    """Insert a channel into BASE (a directory or a hub id) and write the checkpoint CKPT.

    The base's own outputs stay as they are. Memory use does not grow with the base: tensors are
    written one at a time.
    """
    started = time.monotonic()
    channel["signals"] = channel["signals"] or (Signal("reward"),)
    options = ChannelOptions(**channel)
    if data is not None and options.initialization != "probe":
        raise click.UsageError(f"--data is for --init probe, not --init {options.initialization}")
    planned = functools.partial(
        insertion.plan,
        base,
        ckpt,
        options,
        adapter=adapter,
        replacements=replacements,
        force=force,
    )
    plan = planned()
    fit = None if data is None else _fit(plan, data, score_scale, max_tokens, options.seed)
    click.echo(_settings(plan))
    if fit is not None:
        plan = planned(probe=fit())
    for note in (*plan.notes, difference_from_transformers(plan.base)):
        if note is not None:
            click.echo(f"note: {note}")
    with byte_bar(plan.total_bytes, "writing") as progress:
        plan.write(progress)
    click.echo(
        f"wrote {ckpt}: {human_bytes(plan.total_bytes)} in {time.monotonic() - started:.1f} s, "
        f"peak memory {human_bytes(peak_memory())}"
    )


def _fit(
    plan: Insertion, data: Path, scale: float, max_tokens: int, seed: int
) -> Callable[[], Probe]:
    """Read the data; what comes back fits a probe of the base's last state to it."""
    try:
        from otter_export.modeling.data import Reader
        from otter_export.modeling.probe_fit import fit_probe, fittable
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "?", "train", "insert --data") from error
    objective, signals = fittable(plan.config.signals)
    reader = Reader(
        objective,
        next((s for s in signals if objective in kind_of(s).objectives), signals[0]),
        load_tokenizer(plan.base.directory),
        end_token_id(plan.base),
        scale,
        min(max_tokens, plan.base.dimensions.max_position_embeddings),
    )
    items = reader.read(data)

    def fit() -> Probe:
        with tqdm(total=len(items), desc="fitting", unit="text", delay=DELAY_SECONDS) as bar:
            return fit_probe(plan.base, plan.config, items, seed, bar.update)

    return fit


def _settings(plan: Insertion) -> str:
    c = plan.config
    shape = shape_words(c, plan.base.dimensions.num_hidden_layers)
    signals = ", ".join(f"{s.name} ({s.kind}, {s.activation})" for s in c.signals)
    where = "copied" if c.base_model_name_or_path is None else f"at {c.base_model_name_or_path}"
    return (
        f"base {plan.base.directory} ({plan.base.family.name}), {where}\n"
        f"channel d'={c.hidden_size} m'={c.intermediate_size} H'={c.num_attention_heads} "
        f"H'kv={c.num_key_value_heads} e={c.head_dim}, {shape}, {c.initialization}; "
        f"{human_count(plan.inserted_parameters)} parameters\n"
        f"signals {signals}\n"
        f"targets {_targets(plan)}"
    )


def _targets(plan: Insertion) -> str:
    """What each target will say of this checkpoint, before anything is trained."""
    reasons = dict(refusals(plan.base, plan.config))
    builds = ", ".join(name for name in TARGETS if name not in reasons)
    return "\n".join([f"{builds} build it", *(f"  not {n}: {why}" for n, why in reasons.items())])

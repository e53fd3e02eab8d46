"""``otter-export list KIND``: what this installation knows, from the registries."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from collections.abc import Callable
from typing import Any

import click

from otter_export.cli.table import table
from otter_export.config import ACTIVATION_BOUNDS, ACTIVATIONS
from otter_export.converters.target import Availability, Target
from otter_export.errors import MissingDependencyError
from otter_export.families import FAMILIES
from otter_export.family_features import features
from otter_export.registry import Registry
from otter_export.signals import SIGNALS, Signal

Entry = dict[str, str]


def _targets() -> list[Entry]:
    """A row for each target, and one for each of its builders where it has several."""
    return _registered("otter_export.converters:TARGETS", _target)


def _methods() -> list[Entry]:
    return _registered("otter_export.runtime.methods:METHODS", _method)


def _rules() -> list[Entry]:
    return _registered(
        "otter_export.graph.rules:RULES", lambda rule: {"description": str(rule.shape)}
    )


def _families() -> list[Entry]:
    def describe(name: str) -> Entry:
        family = FAMILIES.load(name)
        return {
            "name": name,
            "model types": ", ".join(family.model_types),
            "features": ", ".join(features(family)),
            "refused settings": ", ".join(key for key, _, _ in family.refused),
        }

    return [describe(name) for name in FAMILIES]


def _signals() -> list[Entry]:
    rows = []
    symbols: dict[int | str, str] = {1: "1", 2: "2", -1: "d'", -2: "V", 64: "n"}

    def words(*sizes: int | str) -> str:
        return f"[{', '.join(symbols.get(size, str(size)) for size in sizes)}]"

    for name in SIGNALS:
        kind, signal = SIGNALS.load(name), Signal("any", name, heads=64)
        rows.append(
            {
                "name": name,
                "predicts": kind.predicts.replace("`", ""),
                "weight": words(*kind.weight_shape(signal, -1, -2)),
                "output": words("batch", "rows", *kind.output_dims(signal, -2)),
                "activations": ", ".join(kind.activations),
            }
        )
    for activation in ACTIVATIONS:
        bounds = ACTIVATION_BOUNDS[activation]
        meaning = "no bounds" if bounds is None else f"bounds {list(bounds)}"
        rows.append({"name": f"activation {activation}", "predicts": meaning})
    return rows


LISTS: dict[str, Callable[[], list[Entry]]] = {
    "targets": _targets,
    "signals": _signals,
    "methods": _methods,
    "rules": _rules,
    "families": _families,
}


@click.command(name="list")
@click.argument("what", type=click.Choice(list(LISTS)))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_(what: str, as_json: bool) -> None:
    """List the known targets, signals, methods, widening rules or base families."""
    entries = LISTS[what]()
    if as_json:
        click.echo(json.dumps(entries, indent=1))
        return
    columns = list(dict.fromkeys(key for entry in entries for key in entry))
    click.echo(table([[entry.get(c, "") for c in columns] for entry in entries], columns))


def _target(target: Target) -> list[Entry]:
    found = target.availability()
    usable = any(one.usable for one in found)
    entry = {
        "usable": _yes(usable),
        "version": "",
        "needs GPU": "",
        "precisions": ", ".join(target.precisions),
        "description": target.summary,
    }
    return [entry, *(_builder(target, one) for one in found if one.name)]


def _builder(target: Target, builder: Availability) -> Entry:
    return {
        "name": f"{target.name} --builder {builder.name}",
        "usable": _yes(builder.usable),
        "version": builder.version or "",
        "needs GPU": _yes(builder.needs_gpu),
        "precisions": "",
        "description": builder.note,
    }


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _registered(
    path: str, describe: Callable[[Any], Entry] | Callable[[Any], list[Entry]]
) -> list[Entry]:
    """Entries of a registry; one whose extra is missing says so instead of failing.

    Args:
        path: Of the registry, as ``module:object``.
        describe: One row of an object, without its name; or several, the first without it.
    """
    module_name, _, attribute = path.partition(":")
    try:
        registry: Registry[Any] = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("otter_export"):
            raise
        raise MissingDependencyError(error.name or "?", "build", "this list") from error
    entries = []
    for name in registry:
        try:
            described = describe(registry.load(name))
            first, *more = described if isinstance(described, list) else [described]
            entries += [{"name": name, **first}, *more]
        except MissingDependencyError as error:
            entries.append({"name": name, "description": f"not usable here: {error}"})
    return entries


def _summary(entry: object) -> Entry:
    first_line = (inspect.getdoc(entry) or "").partition("\n")[0]
    return {"description": first_line.replace("``", "")}


def _method(method: Any) -> Entry:
    options = ", ".join(
        field.name if field.default is dataclasses.MISSING else f"{field.name}={field.default}"
        for field in dataclasses.fields(method)
    )
    return {**_summary(method), "options": options}

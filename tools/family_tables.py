"""The tables of base families, from docs/families.json and the families' own tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from otter_export.converters import TARGETS
from otter_export.families import FAMILIES
from otter_export.families.refused import REFUSED as REFUSED_TYPES
from otter_export.family_features import features
from tools.family_results import FAILED, NOT_RUN, PASSED, REFUSED, CaseResult, Results

#: Cells whose largest differences have a column, and what they differ from.
_FIGURES = (
    *("insert", "torch", "onnx fp32", "onnx fp16", "onnx int8", "onnx int4"),
    *("trt form", "trt fp16", "trt bf16", "trt int8", "trt int4"),
)
#: docs/vllm.md lists the families of target ``vllm``, whose tests have an environment of their own.
_TARGETS = tuple(name for name in TARGETS if name != "vllm")


def summary(results: Results) -> str:
    """Families by targets: the precisions in which every case of a family passed."""
    targets = [TARGETS.load(name) for name in _TARGETS]
    head = ["base family", "`model_type`", *(f"`--target {t.name}`" for t in targets)]
    rows = []
    for name in FAMILIES:
        cases = [case for case in results.cases if case.family == name]
        cells = [_precisions(cases, target.name, target.precisions) for target in targets]
        rows.append([name, _code(FAMILIES.load(name).model_types), *cells])
    reasons = "each with its [reason](docs/families.md#refused)"
    refused = f"{len(REFUSED_TYPES)} further model types of transformers are refused, {reasons}."
    return f"{_table(head, rows)}\n\n{refused}"


def page(results: Results) -> str:
    """All tables of docs/families.md."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    states = [outcome.state for case in results.cases for outcome in case.cells.values()]
    counts = ", ".join(f"{states.count(s)} {s}" for s in (PASSED, REFUSED, NOT_RUN, FAILED))
    parts = [
        f"`{results.command}`: {len(results.cases)} bases, {len(states)} cells in "
        f"{results.seconds} s on {results.cores} cores: {counts}. With {versions}.",
        "## Families",
        _families(results),
        "## Coverage",
        _coverage(results),
        "## What each cell checks",
        _checks(results),
        "## Figures",
        "Largest differences in units of the largest value or, of cells that run `verify`, of the "
        "spread; logits, and signals behind the stroke.",
        _figures(results),
        "## Refused",
        _refused(results),
    ]
    return "\n\n".join(parts)


def _families(results: Results) -> str:
    rows = []
    for name in FAMILIES:
        family = FAMILIES.load(name)
        cases = [case for case in results.cases if case.family == name]
        mends = sorted({mend for case in cases for mend in case.mends})
        settings = [key for key, _, _ in family.refused]
        row = [_code(family.model_types), ", ".join(features(family)), _code(mends)]
        rows.append([name, *row, _code(settings)])
    return _table(["family", "`model_type`", "features", "mends", "refused settings"], rows)


def _coverage(results: Results) -> str:
    """A row for each case; one column for all precisions of a target."""
    targets = [TARGETS.load(name) for name in _TARGETS]
    built = {f"{target.name} {precision}" for target in targets for precision in target.precisions}
    single = [name for name in results.checks if name not in built]
    rows = []
    for case in results.cases:
        row = [_mark(case, name) for name in single]
        row += [_precisions([case], target.name, target.precisions) for target in targets]
        seconds = sum(outcome.seconds for outcome in case.cells.values())
        rows.append([case.name, case.family, *row, f"{seconds:.0f}"])
    return _table(["base", "family", *single, *_TARGETS, "s"], rows)


def _checks(results: Results) -> str:
    rows = []
    for name, check in results.checks.items():
        most: dict[str, float] = {}
        for case in results.cases:
            for figure, value in case.cells[name].figures.items():
                most[figure] = max(value, most.get(figure, value))
        numbers = ", ".join(f"{figure} {value:g}" for figure, value in most.items())
        rows.append([name, check.replace("``", "`"), numbers])
    return _table(["cell", "check", "largest of all bases"], rows)


def _figures(results: Results) -> str:
    rows = []
    for case in results.cases:
        cells = [case.cells[name].figures for name in _FIGURES]
        rows.append([case.name, *(" / ".join(f"{v:.1e}" for v in c.values()) for c in cells)])
    return _table(["base", *_FIGURES], rows)


def _refused(results: Results) -> str:
    """By reason: what of the cases a target refuses, model types, and settings of families."""
    targets: dict[str, list[str]] = {}
    for case in results.cases:
        for name, outcome in case.cells.items():
            if outcome.state == REFUSED:
                reason = outcome.reason.partition("config.json: ")[2] or outcome.reason
                reason = reason.replace(f"family {case.family}", "family NAME")
                names = targets.setdefault(f"`--target {name.partition(' ')[0]}`: {reason}", [])
                names += [] if case.name in names else [case.name]
    types: dict[str, list[str]] = {}
    for model_type, reason in sorted(REFUSED_TYPES.items()):
        types.setdefault(reason, []).append(model_type)
    rows = [[_code(names), reason] for reason, names in types.items()]
    rows += [[", ".join(names), reason] for reason, names in targets.items()]
    for name in FAMILIES:
        for key, accepted, reason in FAMILIES.load(name).refused:
            rows.append([f"{name} with `{key}` other than `{accepted}`", reason])
    return _table(["what", "the reason that the user sees"], rows)


def _precisions(cases: Sequence[CaseResult], target: str, names: Iterable[str]) -> str:
    """The precisions in which cases pass, and the cases that do not; ``no`` if none does."""
    passed, without = [], set()
    for name in names:
        states = {case.name: case.cells[f"{target} {name}"].state for case in cases}
        if PASSED in states.values():
            passed.append(name)
            without |= {case for case, state in states.items() if state != PASSED}
    but = f" (not {', '.join(sorted(without))})" if without else ""
    return ", ".join(passed) + but if passed else "no"


def _mark(case: CaseResult, cell: str) -> str:
    state = case.cells[cell].state
    return "yes" if state == PASSED else state


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

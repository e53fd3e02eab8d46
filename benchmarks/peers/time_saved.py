"""What a reward takes in time: a channel's, and a reward model's of the base's size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.peers.contest import TOP_K, WEIGHT, Competitor, Prompts, Setting, contest, percent
from benchmarks.peers.material import Files
from benchmarks.peers.process import Peer

PLAIN = "plain"
#: Methods of the literature, by their name in `benchmarks.peers.literature`.
METHODS = {
    "args": "ARGS as published",
    "args_cached": "ARGS, KV-cached",
    "rad": "RAD",
    "pargs": "PARGS",
    "q_style": "Q-style reward model",
}
VALUE, Q_VALUE = "ours: value", "ours: q_value"
#: Tokens before the ones that are timed: text that the base wrote behind a prompt.
LENGTHS = (32, 128)


def time_saved(
    files: Files, library: str, prompts: Prompts, setting: Setting
) -> Iterator[dict[str, Any]]:
    """Extra time per token of every method over plain decoding, in one library.

    Args:
        files: Of the model.
        library: ``transformers``, or a precision of our kernels.
        prompts: Token ids.
        setting: How it is measured; few tokens do, since lengths are given.

    Yields:
        For each length and method: milliseconds per token, those beyond plain decoding's, and which
        share of them is saved by a channel of each kind.
    """
    with contextlib.ExitStack() as stack:
        found = _competitors(files, library, setting, stack)
        texts = [_continued(found[0].peer, prompt) for prompt in prompts]
        for length in LENGTHS:
            cut = [text[:length] for text in texts]
            rows = contest(found, cut, setting, PLAIN)
            shared = {"model": files.name, "library": library, "prefix": length}
            yield from ({**shared, **line} for line in savings(rows))


def savings(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Lines of a table from the rows of one contest, whose ratios are to plain decoding."""
    # Of ratios, not of times: what disturbs a round disturbs both of them.
    extra = {row["name"]: row["ratio"] - 1 for row in rows}
    for row in rows:
        name = row["name"]
        line = {"method": name, "ms a token": row["median"], "extra / plain": extra[name]}
        if name in METHODS.values():
            line["saved by value"] = percent(1 - extra[VALUE] / extra[name])
            line["saved by q_value"] = percent(1 - extra[Q_VALUE] / extra[name])
        yield line


def _competitors(
    files: Files, library: str, setting: Setting, stack: contextlib.ExitStack
) -> list[Competitor]:
    """Plain decoding first, then the methods, then ours."""

    def start(module: str, *arguments: object) -> Peer:
        return stack.enter_context(Peer(module, *arguments, threads=setting.threads))

    if library == "transformers":
        literature = start("literature", library, files.base())
        engines = [start("otter", files.checkpoint(kind)) for kind in ("value", "q_value")]
    else:
        literature = start("literature", "onnx", files.graphs(library))
        engines = [start("otter", files.engine(kind, library)) for kind in ("value", "q_value")]
    options = {"k": TOP_K, "weight": WEIGHT}
    guided = {"method": "args-greedy", "top_k": TOP_K, "weight": WEIGHT}
    return [
        Competitor(PLAIN, literature, {"method": "plain"}),
        *(Competitor(n, literature, {"method": m, **options}) for m, n in METHODS.items()),
        *(Competitor(n, e, guided) for n, e in zip((VALUE, Q_VALUE), engines, strict=True)),
        Competitor(f"{VALUE}, nothing pruned", engines[0], {**guided, "prune": False}),
    ]


def _continued(base: Peer, prompt: Sequence[int]) -> list[int]:
    """A prompt and what the base says behind it, of the greatest length."""
    answer = base.ask(prompt, max(LENGTHS), method="plain")
    return [*prompt, *answer["tokens"]][: max(LENGTHS)]


def draw(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Milliseconds per token of every method, a panel for each library and length."""
    from matplotlib.figure import Figure

    cells = list(dict.fromkeys((row["library"], row["prefix"]) for row in rows))
    figure = Figure(figsize=(9, 2 * len(cells)), layout="constrained")
    for axis, (library, length) in zip(
        figure.subplots(len(cells), squeeze=False)[:, 0], cells, strict=True
    ):
        shown = [r for r in rows if (r["library"], r["prefix"]) == (library, length)][::-1]
        colors = ["#1f6feb" if "ours" in row["method"] else "#8a6d3b" for row in shown]
        axis.barh([r["method"] for r in shown], [r["ms a token"] for r in shown], color=colors)
        axis.set_xscale("log")
        axis.tick_params(labelsize=7)
        axis.set_title(f"{library}, prefix {length}: ms a token", fontsize=9)
    return figure

"""DExperts (Liu et al., arXiv 2105.03023) as published: two more models beside the base.

Expert and anti-expert are copies of the base whose upper layers are fine-tuned, one on harmless
comments, one on insults. A step is a row of each of three models,
which all keep their KV caches. The next token is drawn from ``z + weight * (z+ - z-)`` over the
nucleus of the base's ``z``.

The three run as this project's own graphs in the engine's precision, so that times differ by the
method and not by the library.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baselines.model import Array, Model
from benchmarks.baselines.onnx_files import write_base
from benchmarks.baselines.onnx_model import OnnxModel
from examples.detoxification.judges import labelled
from examples.sentiment.material import atomically
from otter_export import insert
from otter_export.base_model import BaseModel
from otter_export.channel_options import ChannelOptions
from otter_export.checkpoint import Checkpoint
from otter_export.hub import TOKENIZER_FILES
from otter_export.runtime.sampler import nucleus, sample

NAMES = ("base", "expert", "anti")


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """How each of the two copies learns.

    Args:
        first_layer: The layers from here on learn, and the final norm.
        tokens: Supervised tokens that each reads, of its own class; epochs as that takes.
        batch_tokens: Of a step, padding included.
        max_tokens: Longer comments are cut.
        learning_rate: Of AdamW, falling linearly to 0.
    """

    first_layer: int = 14
    tokens: int = 30_000
    batch_tokens: int = 512
    max_tokens: int = 96
    learning_rate: float = 1e-4


FULL, QUICK = FineTuning(), FineTuning(tokens=200, batch_tokens=64, max_tokens=32)


def make(
    base: Path,
    comments: Path,
    out: Path,
    settings: FineTuning,
    advance: Callable[[int], object] = lambda tokens: None,
) -> None:
    """Fine-tune the two copies and write three int8 graphs, ``out/NAME``; what is there stays.

    Args:
        base: Hugging Face directory.
        comments: The ``train`` split.
        out: A directory.
        settings: Of the fine-tuning.
        advance: Told how many tokens of a copy have just been learnt from.
    """
    out.mkdir(parents=True, exist_ok=True)
    texts, insult = labelled(comments)
    wanted = {"expert": 0.0, "anti": 1.0}
    for name in NAMES:
        if (out / name).is_dir():
            continue
        model = base
        if name in wanted:
            own = [t for t, label in zip(texts, insult, strict=True) if label == wanted[name]]
            model = out / f"{name}-model"
            fine_tune(base, own, model, settings, advance)
        write_graph(model, out / name)


def fine_tune(
    base: Path,
    texts: Sequence[str],
    destination: Path,
    settings: FineTuning,
    advance: Callable[[int], object],
) -> None:
    """Write a copy of the base that has learnt the language of texts."""
    import torch
    from torch.nn import functional

    from otter_export.modeling.data import collate
    from otter_export.modeling.otter_model import load_base
    from otter_export.modeling.training_config import arithmetic, fastest_dtype

    opened = BaseModel.open(base)
    model: Any = load_base(opened)
    upper = (*model.model.layers[settings.first_layer :], model.model.norm)
    model.requires_grad_(False)
    parameters = [p for module in upper for p in module.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate)
    done = 0
    for group in _groups(opened, texts, settings):
        batch = collate(group)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - done / settings.tokens)
        with arithmetic(fastest_dtype()):
            logits = model(batch.ids, use_cache=False).logits[:, :-1].float()
        predicted = batch.supervised[:, 1:]
        loss = functional.cross_entropy(logits[predicted], batch.ids[:, 1:][predicted])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        done += batch.tokens
        advance(batch.tokens)
        if done >= settings.tokens:
            break

    def save(directory: Path) -> None:
        model.save_pretrained(directory)
        for file in TOKENIZER_FILES:
            if (base / file).is_file():
                shutil.copy(base / file, directory / file)

    atomically(destination, save)


def _groups(base: BaseModel, texts: Sequence[str], settings: FineTuning) -> Iterator[Any]:
    """Batches of similar length, epoch after epoch."""
    from otter_export.modeling.data import Item, Row, epoch_groups
    from otter_export.modeling.tokenization import end_token_id, load_tokenizer

    tokenizer, end = load_tokenizer(base.directory), end_token_id(base)
    ends = () if end is None else (end,)
    encoded = [(*tokenizer.encode(text, add_special_tokens=False), *ends) for text in texts]
    rows = [Row(ids[: settings.max_tokens], 1) for ids in encoded if len(ids) > 1]
    items = [Item(i, (row,)) for i, row in enumerate(rows)]
    for epoch in itertools.count():
        yield from epoch_groups(items, settings.batch_tokens, 0, epoch)


def write_graph(model: Path, destination: Path) -> None:
    """Write a model as an int8 graph.

    The library reads checkpoints, so a channel lies beside the model for as long as that takes; the
    graph is that of the model alone.
    """

    def save(directory: Path) -> None:
        beside = directory / "checkpoint"
        insert.plan(str(model), beside, ChannelOptions(hidden_size=8), adapter=True).write()
        write_base(Checkpoint.open(beside), "int8", directory)
        shutil.rmtree(beside)

    atomically(destination, save)


def load(out: Path, threads: int) -> tuple[Model, ...]:
    """Base, expert and anti-expert, which `make` wrote."""
    return tuple(OnnxModel(out / name, threads, scalar=False) for name in NAMES)


def decode(
    models: Sequence[Model],
    prompt: Sequence[int],
    *,
    weight: float,
    top_p: float,
    generators: Sequence[np.random.Generator],
) -> Iterator[list[int]]:
    """Yield the next token of each continuation of a prompt, without end.

    Args:
        models: Base, expert and anti-expert; or the base alone, which then decodes plainly. Each
            keeps its cache, a row a continuation.
        prompt: Token ids, read once.
        weight: Of the experts' difference.
        top_p: Of the base's nucleus.
        generators: One for each continuation.
    """
    copies = [0] * len(generators)
    read = [model.read(None, [prompt]) for model in models]
    logits = [z[copies] for z, _ in read]
    caches = [model.rows(cache, copies) for model, (_, cache) in zip(models, read, strict=True)]
    while True:
        rows = zip(*logits, generators, strict=True)
        drawn = [draw(z, weight, top_p, generator) for *z, generator in rows]
        yield drawn
        fed = [[token] for token in drawn]
        read = [model.read(c, fed) for model, c in zip(models, caches, strict=True)]
        logits, caches = [z for z, _ in read], [cache for _, cache in read]


def draw(
    logits: Sequence[Array], weight: float, top_p: float, generator: np.random.Generator
) -> int:
    """The next token from the models' logits, each ``[V]``, the base's first."""
    z = logits[0]
    kept = nucleus(z, np.arange(len(z)), 1.0, top_p)
    scores = z[kept].astype(np.float64)
    if len(logits) > 1:
        scores = scores + weight * (logits[1][kept] - logits[2][kept])
    return int(kept[sample(scores, 1.0, generator)])

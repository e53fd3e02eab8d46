"""L5: ``otter-export import`` of heads that real classes saved, against what those score."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from otter_export import load_engine, score
from otter_export.checkpoint import Checkpoint
from otter_export.evaluation.stored_weights import StoredWeights, checkpoint_weights, mismatches
from otter_export.importing.backbone import compare
from otter_export.importing.source import Source
from otter_export.modeling.otter_model import load_base
from tests import built, tiny
from tests.command_line import Cli
from tests.runtime.executors.graphs import in_place_engine

#: Float32 sums in another order, of scores around 1.
EQUAL = 1e-5
IDS = [3, 17, 90, 5, 64, 33, 21]


def classifier(
    directory: Path, base: Path, kind: str = "SequenceClassification", labels: int = 1
) -> Any:
    """A classifier on the base's weights, with a random head, saved by its own class."""
    torch.manual_seed(labels)
    names = {i: name for i, name in enumerate(("bad", "good", "other")[:labels])}
    auto = getattr(transformers, f"AutoModelFor{kind}")
    model = auto.from_pretrained(base, num_labels=labels, id2label=names).eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("score.", "classifier.")):
            parameter.data.normal_(std=0.3)
    model.config.pad_token_id = 0
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (base / name).is_file():
            (directory / name).write_bytes((base / name).read_bytes())
    return model


# A norm of each kind.
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_reward_model_s_head_scores_every_prefix_as_it_does(
    tmp_path: Path, cli: Cli, family: str
) -> None:
    """Import, build, score: the class's own score of each prefix."""
    base = tiny.write_base(tmp_path / "base", family)
    model = classifier(tmp_path / "rm", base)
    result = cli("import", tmp_path / "rm", tmp_path / "ckpt", "--base", base)
    assert result.status == 0, result.stderr
    assert re.search(r"parity: 16 scores .* largest difference \S+e-0[67]", result.stdout)
    engine = built.build(Checkpoint.open(tmp_path / "ckpt"), tmp_path / "engine", precision="fp32")
    (scored,) = score(load_engine(engine), [IDS])
    with torch.no_grad():
        expected = [
            float(model(input_ids=torch.tensor([IDS[:end]])).logits)
            for end in range(1, len(IDS) + 1)
        ]
    assert scored.rewards == pytest.approx(expected, abs=EQUAL)


def test_a_value_head_is_read_from_a_model_and_from_a_file_of_its_own(
    tmp_path: Path, cli: Cli
) -> None:
    """TRL puts it beside the model's tensors, LlamaFactory into a file: the published names."""
    base = tiny.write_base(tmp_path / "base")
    generator = np.random.default_rng(0)
    head = {
        "v_head.summary.weight": generator.standard_normal((1, 64)).astype(np.float32),
        "v_head.summary.bias": generator.standard_normal(1).astype(np.float32),
    }
    trl, factory = tmp_path / "trl", tmp_path / "factory"
    for directory in (trl, factory):
        tiny.write_base(directory)
    save_file(
        load_file(base / "model.safetensors") | head, trl / "model.safetensors", {"format": "pt"}
    )
    save_file(head, factory / "value_head.safetensors", {"format": "pt"})
    save_file(head, tmp_path / "head.safetensors", {"format": "pt"})
    sources = {"trl": (trl,), "factory": (factory, "--base", base)}
    sources["file"] = (tmp_path / "head.safetensors", "--base", base)
    with torch.no_grad():
        state = load_base(Checkpoint.open(tiny.write_checkpoint(tmp_path / "c", base=base)).base)(
            input_ids=torch.tensor([IDS]), output_hidden_states=True
        ).hidden_states[-1][0]
    expected = state.numpy() @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"]
    said = {
        "trl": "the source's own is the base",
        "factory": "tensors equal the base's",
        "file": "the source has heads alone",
    }
    for name, (source, *options) in sources.items():
        result = cli("import", source, tmp_path / f"ckpt-{name}", *options)
        assert result.status == 0, result.stderr
        assert said[name] in result.stdout
        (scored,) = score(load_engine(tmp_path / f"ckpt-{name}"), [IDS])
        assert scored.rewards == pytest.approx(expected.tolist(), abs=EQUAL)


def test_what_trl_itself_saved_scores_as_its_model_does(tmp_path: Path, cli: Cli) -> None:
    """Its class's own ``save_pretrained`` and its own values; trl 1.16 has no such class."""
    trl = pytest.importorskip("trl.models.modeling_value_head", reason="make test gets trl")
    base = tiny.write_base(tmp_path / "base")
    torch.manual_seed(0)
    head = {"v_head_init_strategy": "normal", "v_head_initializer_range": 0.3}
    model = trl.AutoModelForCausalLMWithValueHead.from_pretrained(str(base), **head).eval()
    model.save_pretrained(str(tmp_path / "trl"))
    result = cli("import", tmp_path / "trl", tmp_path / "ckpt", "--base", base)
    assert result.status == 0, result.stderr
    with torch.no_grad():
        values = model(torch.tensor([IDS]))[2][0]
    (scored,) = score(load_engine(tmp_path / "ckpt"), [IDS])
    assert scored.rewards == pytest.approx(values.tolist(), abs=EQUAL)


def test_a_token_classifier_s_label_or_its_probability(tmp_path: Path, cli: Cli) -> None:
    base = tiny.write_base(tmp_path / "base")
    model = classifier(tmp_path / "prm", base, "TokenClassification", 2)
    result = cli("import", tmp_path / "prm", tmp_path / "x", "--base", base)
    assert (result.status, "has 2 labels; choose one: --label good" in result.stderr) == (2, True)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([IDS])).logits[0]
    cases = {
        "score": (("--label", "good"), logits[:, 1]),
        "number": (("--label", "0", "--activation", "tanh"), torch.tanh(logits[:, 0])),
        "probability": (("--label", "good", "--probability"), torch.softmax(logits, -1)[:, 1]),
    }
    for name, (options, expected) in cases.items():
        result = cli("import", tmp_path / "prm", tmp_path / name, "--base", base, *options)
        assert result.status == 0, result.stderr
        (scored,) = score(load_engine(tmp_path / name), [IDS])
        assert scored.rewards == pytest.approx(expected.tolist(), abs=EQUAL)


def test_a_tuned_backbone_is_refused_with_figures(tmp_path: Path, cli: Cli) -> None:
    base = tiny.write_base(tmp_path / "base")
    model = classifier(tmp_path / "frozen", base)
    with torch.no_grad():
        weight = model.model.layers[1].mlp.down_proj.weight
        weight += 0.1 * weight.std() * torch.randn_like(weight)
        model.model.layers[0].input_layernorm.weight[0] += 0.5
    model.save_pretrained(tmp_path / "tuned")
    result = cli("import", tmp_path / "tuned", tmp_path / "ckpt", "--base", base)
    assert result.status == 2
    assert re.search(
        r"backbone of \S+ was trained too: 2 of 20 tensors differ from \S+, most "
        r"model.layers.1.mlp.down_proj.weight \(by (9|10)\.\d% of its size, at most 0\.\d+\)",
        result.stderr,
    )
    assert "otter-export label --teacher" in result.stderr
    assert not (tmp_path / "ckpt").exists()


def test_a_base_saved_in_half_precision_is_the_same(tmp_path: Path) -> None:
    base = Checkpoint.open(
        tiny.write_checkpoint(tmp_path / "c", base=tiny.write_base(tmp_path / "base"))
    ).base
    model = classifier(tmp_path / "rm", tmp_path / "base")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    found = compare(base, Source.open(tmp_path / "half"))
    assert (found.compared, found.different) == (20, ())


def medusa(heads: int = 3, blocks: int = 1) -> dict[str, np.ndarray]:
    """Random heads in their published layout."""
    generator = np.random.default_rng(1)
    tensors = {}
    for i in range(heads):
        for j in range(blocks):
            tensors[f"{i}.{j}.linear.weight"] = generator.standard_normal((64, 64)) * 0.2
            tensors[f"{i}.{j}.linear.bias"] = generator.standard_normal(64) * 0.2
        tensors[f"{i}.{blocks}.weight"] = generator.standard_normal((128, 64)) * 0.1
    return {name: values.astype(np.float32) for name, values in tensors.items()}


@pytest.mark.parametrize("blocks", [0, 1])
def test_medusa_heads_with_their_blocks(tmp_path: Path, cli: Cli, blocks: int) -> None:
    """Import, build, draft: the engine's logits against the layers written out in numpy."""
    base = tiny.write_base(tmp_path / "base")
    source = tmp_path / "medusa"
    source.mkdir()
    (source / "config.json").write_text(
        json.dumps({"medusa_num_heads": 3, "base_model_name_or_path": str(base)})
    )
    tensors = medusa(blocks=blocks)
    save_file(tensors, source / "medusa_lm_head.safetensors", {"format": "pt"})
    result = cli("import", source, tmp_path / "ckpt")
    assert result.status == 0, result.stderr
    assert "signal drafts (medusa, identity), d'=64" in result.stdout
    assert re.search(r"largest difference \S+e-0[5678]", result.stdout)
    checkpoint = Checkpoint.open(tmp_path / "ckpt")
    assert checkpoint.config.version == (3 if blocks else 2)
    engine = load_engine(built.build(checkpoint, tmp_path / "engine", precision="fp32"))
    # The graph that TensorRT is given, too.
    steps = [
        one.forward(
            one.new_cache(1),
            np.array([IDS]),
            np.arange(len(IDS))[None],
            np.tri(len(IDS), dtype=bool)[None],
            4,
        )
        for one in (engine, in_place_engine(checkpoint, tmp_path / "trt", "f32"))
    ]
    with torch.no_grad():
        state = load_base(checkpoint.base)(
            input_ids=torch.tensor([IDS]), output_hidden_states=True
        ).hidden_states[-1][0, -4:]
    for i in range(3):
        h = state.numpy()
        if blocks:
            z = h @ tensors[f"{i}.0.linear.weight"].T + tensors[f"{i}.0.linear.bias"]
            h = h + z / (1 + np.exp(-z))
        expected = h @ tensors[f"{i}.{blocks}.weight"].T
        # Float32 sums in another order, of logits around 1.
        for step in steps:
            np.testing.assert_allclose(step.signals["drafts"][0, :, i], expected, atol=2e-5)
    stored = StoredWeights(
        tmp_path / "engine" / "model.onnx", frozenset(checkpoint_weights(checkpoint))
    )
    assert list(mismatches(stored, checkpoint)) == []


def test_heads_with_several_blocks_are_refused(tmp_path: Path, cli: Cli) -> None:
    base = tiny.write_base(tmp_path / "base")
    save_file(medusa(blocks=2), tmp_path / "heads.safetensors")
    result = cli("import", tmp_path / "heads.safetensors", tmp_path / "ckpt", "--base", base)
    assert result.status == 2
    assert "its heads have 2 residual blocks; none or one each can be imported" in result.stderr


PICKLE = "is a pickle, which can run code and is never read; convert it where it was made"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: (d / "value_head.bin").write_bytes(b"\x80"), PICKLE),
        (lambda d: (d / "medusa_lm_head.pt").write_bytes(b"\x80"), PICKLE),
        (lambda d: (d / "adapter_config.json").write_text("{}"), "is a LoRA adapter"),
        (lambda d: save_file({"a": np.zeros(3)}, d / "model.safetensors"), "has no head that is"),
        (
            lambda d: save_file(
                {
                    "1.0.weight": np.ones((128, 64), np.float32),
                    "0.0.linear.weight": np.zeros((64, 64), np.float32),
                },
                d / "medusa_lm_head.safetensors",
            ),
            "heads [1] with blocks of [0] are not 0, 1, 2",
        ),
        (
            lambda d: save_file(
                {"v_head.summary.weight": np.zeros((1, 32), np.float32)},
                d / "value_head.safetensors",
            ),
            "tensor v_head.summary.weight has shape [1, 32], this base needs [1, 64]",
        ),
        (
            lambda d: save_file(
                {"v_head.summary.weight": np.array([[np.nan, np.inf, *[0] * 62]], np.float32)},
                d / "value_head.safetensors",
            ),
            "v_head.summary.weight holds 2 values that are not finite",
        ),
        (
            lambda d: save_file(
                {
                    "score.0.weight": np.zeros((4, 64), np.float32),
                    "score.2.weight": np.zeros((1, 4), np.float32),
                },
                d / "model.safetensors",
            ),
            "its head is more than one linear layer (score.0.weight, score.2.weight)",
        ),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    tmp_path: Path, cli: Cli, make: Any, message: str
) -> None:
    base = tiny.write_base(tmp_path / "base")
    (tmp_path / "source").mkdir()
    make(tmp_path / "source")
    result = cli("import", tmp_path / "source", tmp_path / "ckpt", "--base", base)
    assert result.status == 2
    assert message in result.stderr
    assert not (tmp_path / "ckpt").exists()


def test_a_head_alone_needs_a_base(tmp_path: Path, cli: Cli) -> None:
    save_file({"v_head.summary.weight": np.zeros((1, 64), np.float32)}, tmp_path / "h.safetensors")
    result = cli("import", tmp_path / "h.safetensors", tmp_path / "ckpt")
    assert (result.status, "name its base with --base" in result.stderr) == (2, True)

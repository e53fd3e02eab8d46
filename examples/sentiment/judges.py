"""Two judges of sentiment that know nothing of the channel.

- VADER's lexicon (Hutto and Gilbert 2014): words and rules; its compound score lies in [-1, 1].
- A ridge probe: linear in the base's own hidden state, fit on rated snippets that the channel never
  saw. Its weights are shipped (``probe.safetensors``); ``python -m examples.sentiment.judges`` fits
  them anew and prints the correlation with the raters on the test split.

The same forward pass gives the base's perplexity of a text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

PROBE_FILE = Path(__file__).with_name("probe.safetensors")
#: Both were chosen on a tenth of the probe split, never on the test split. The mean over tokens is
#: read (not the last one), because generated reviews end in mid-sentence.
LAYER = 16
RIDGE = 1000.0
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one base forward pass says of some texts.

    Args:
        states: ``[texts, d]``: mean hidden state of layer `LAYER` over a text's tokens.
        negative_log_likelihoods: Per text, the tokens' own, in nats, the first token excluded.
    """

    states: Array
    negative_log_likelihoods: tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear rating, ``(state - mean) / scale @ weight + bias``; the raters' scale over 4."""

    mean: Array
    scale: Array
    weight: Array
    bias: float

    def __call__(self, states: Array) -> Array:
        """``[texts, d]`` to ``[texts]``."""
        return (states - self.mean) / self.scale @ self.weight + self.bias

    @classmethod
    def fit(cls, states: Array, ratings: Array, ridge: float = RIDGE) -> Probe:
        """Ridge regression on standardised states."""
        mean, scale = states.mean(0), states.std(0) + 1e-6
        z = (states - mean) / scale
        gram = z.T @ z + ridge * np.eye(z.shape[1])
        weight = np.linalg.solve(gram, z.T @ (ratings - ratings.mean()))
        return cls(mean, scale, weight, float(ratings.mean()))

    def save(self, path: Path = PROBE_FILE) -> None:
        """Write the probe as safetensors."""
        from safetensors.numpy import save_file

        arrays = {
            "mean": self.mean,
            "scale": self.scale,
            "weight": self.weight,
            "bias": np.array([self.bias]),
        }
        save_file({name: array.astype(np.float32) for name, array in arrays.items()}, str(path))

    @classmethod
    def load(cls, path: Path = PROBE_FILE) -> Probe:
        """Read the shipped probe."""
        from safetensors.numpy import load_file

        arrays = {k: v.astype(np.float64) for k, v in load_file(str(path)).items()}
        return cls(arrays["mean"], arrays["scale"], arrays["weight"], float(arrays["bias"][0]))


def vader(texts: Sequence[str]) -> Array:
    """VADER's compound score of each text."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])


def read(
    base: Path, texts: Sequence[str], progress: Callable[[int], None] = lambda count: None
) -> Reading:
    """Run the untouched base over texts.

    Args:
        base: Hugging Face directory.
        texts: What to read; order is kept.
        progress: Called with the number of texts just read.
    """
    import torch
    from transformers import AutoTokenizer

    from otter_export.base_model import BaseModel
    from otter_export.modeling.otter_model import load_base

    tokenizer: Any = AutoTokenizer.from_pretrained(str(base))
    model = load_base(BaseModel.open(base))
    states: dict[int, Array] = {}
    losses: dict[int, Array] = {}
    for batch in _batches(texts):
        encoded = tokenizer([texts[i] for i in batch], return_tensors="pt", padding=True)
        mask = encoded["attention_mask"].bool()
        with torch.no_grad():
            output = model(**encoded, output_hidden_states=True)
        logs = torch.log_softmax(output.logits[:, :-1].float(), -1)
        nll = -logs.gather(-1, encoded["input_ids"][:, 1:, None])[..., 0]
        for row, index in enumerate(batch):
            state = output.hidden_states[LAYER][row][mask[row]].mean(0)
            states[index] = state.double().numpy()
            losses[index] = nll[row][mask[row, 1:]].double().numpy()
        progress(len(batch))
    order = range(len(texts))
    return Reading(np.stack([states[i] for i in order]), tuple(losses[i] for i in order))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the judges and the base say of some texts.

    Args:
        vader: ``[texts]``.
        probe: ``[texts]``.
        perplexity: Of the base, over all tokens of all texts.
    """

    vader: Array
    probe: Array
    perplexity: float


def judge(base: Path, arms: Mapping[str, Sequence[str]]) -> dict[str, Verdict]:
    """A verdict on each arm's texts; the base reads them all in one go, behind a progress bar."""
    from tqdm import tqdm

    texts = [text for arm in arms.values() for text in arm]
    with tqdm(total=len(texts), desc="judging", unit="text", leave=False) as bar:
        reading = read(base, texts, lambda count: bar.update(count) and None)
    probe, start = Probe.load()(reading.states), 0
    found = {}
    for label, arm in arms.items():
        rows = slice(start, start := start + len(arm))
        losses = np.concatenate(reading.negative_log_likelihoods[rows])
        found[label] = Verdict(vader(arm), probe[rows], float(np.exp(losses.mean())))
    return found


def rated(path: Path) -> tuple[list[str], Array]:
    """Texts and ratings of a split."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], np.array([row["score"] for row in rows])


def _batches(texts: Sequence[str]) -> Iterator[list[int]]:
    """Indices in batches of similar length, so that little is padding."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return (order[i : i + _BATCH] for i in range(0, len(order), _BATCH))


def main() -> None:
    """Fit the probe on the probe split, measure it on the test split, save it."""
    from tqdm import tqdm

    from examples.sentiment.material import prepare

    material = prepare(report=print)
    readings = {}
    for split in ("probe", "test"):
        texts, ratings = rated(getattr(material, split))
        with tqdm(total=len(texts), desc=f"reading {split}") as bar:
            readings[split] = (read(material.base, texts, bar.update).states, ratings)
    probe = Probe.fit(*readings["probe"])
    states, ratings = readings["test"]
    print(f"probe: r = {np.corrcoef(probe(states), ratings)[0, 1]:.3f} on {len(ratings)} snippets")
    probe.save()
    print(f"saved {PROBE_FILE}")


if __name__ == "__main__":
    main()

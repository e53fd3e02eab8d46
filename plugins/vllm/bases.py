"""The classes of vLLM's that can have a channel: a line a family.

vLLM's modules carry the names of Hugging Face's, so a family's own table says where norms and
projections lie; what projections vLLM has put together is found by the names of `MERGED`. Families
that are missing here have no class of vLLM's own (it runs them through transformers), or one that
computes something else: Cohere 2's windows are a token longer there than in transformers.
"""

from __future__ import annotations

from otter_export.base_model import BaseModel
from otter_export.config import OtterConfig
from otter_export.errors import UnsupportedError
from otter_export.signals import kind_of

#: Family (or, where its model types differ, the model type) to vLLM's class.
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral3": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "cohere": "CohereForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "nemotron": "NemotronForCausalLM",
    "stablelm": "StableLmForCausalLM",
}
#: Families whose norms in vLLM return the residual that they were given; others add it.
PASSES_RESIDUAL = ("cohere",)
#: What vLLM computes in one projection.
MERGED = ("qkv_proj", "gate_up_proj")
#: Its names of the feed-forward's activation.
ACTIVATIONS = ("act_fn", "act")
_PREFIX = "Otter"
ARCHITECTURES = tuple(dict.fromkeys(f"{_PREFIX}{name}" for name in CLASSES.values()))


def architecture_of(family: str, source: str) -> str:
    """The architecture of a base with a channel.

    Raises:
        UnsupportedError: The family has none.
    """
    if family not in CLASSES:
        raise UnsupportedError(
            f"{source}: family {family} has no class in vLLM that a channel can be put beside; "
            f"available: {', '.join(CLASSES)}. Use target onnx or trt"
        )
    return f"{_PREFIX}{CLASSES[family]}"


def base_architecture(architecture: str) -> str:
    """VLLM's name of the class below an architecture of `ARCHITECTURES`."""
    return architecture.removeprefix(_PREFIX)


def check_servable(base: BaseModel, config: OtterConfig) -> str:
    """The architecture of a checkpoint in vLLM.

    Raises:
        UnsupportedError: There is none.
    """
    architecture = architecture_of(base.family.name, str(base.directory / "config.json"))
    if not any(kind_of(signal).scores for signal in config.signals):
        raise UnsupportedError(
            "the channel has no signal that scores tokens, and vLLM takes no drafts from it; "
            "serve the base itself"
        )
    return architecture

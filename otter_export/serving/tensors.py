"""The tensors of a served model, in one table.

``config.pbtxt``, the parser of requests and the replies are made from it, and docs/triton.md is
compared with it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

#: Triton's data types (without ``TYPE_``) as numpy has them in a Python model.
NUMPY_TYPES: dict[str, type] = {
    "STRING": np.object_,
    "BOOL": np.bool_,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT64": np.uint64,
    "FP32": np.float32,
    "FP64": np.float64,
}


@dataclasses.dataclass(frozen=True)
class TensorField:
    """One input or output.

    Args:
        name: Its name.
        data_type: A key of `NUMPY_TYPES`.
        many: Whether it may hold any number of values, or exactly one.
        meaning: For the documentation.
    """

    name: str
    data_type: str
    many: bool
    meaning: str

    def array(self, values: list[object]) -> npt.NDArray[np.generic]:
        """Values as an output tensor ``[n]``; text becomes UTF-8."""
        if self.data_type == "STRING":
            encoded = [str(v).encode("utf-8") for v in values]
            return np.array(encoded, dtype=np.object_)
        return np.array(values, dtype=NUMPY_TYPES[self.data_type])


#: Shapes are ``[1, 1]``, or ``[1, n]`` where there may be many, as Triton's OpenAI frontend sends
#: them. All are optional for Triton, so that a missing one gets the parser's own error.
INPUTS: tuple[TensorField, ...] = (
    TensorField("text_input", "STRING", False, "the prompt"),
    TensorField("input_ids", "INT64", True, "the prompt as token ids, instead of `text_input`"),
    TensorField("stream", "BOOL", False, "a response per token, or one at the end (default)"),
    TensorField("max_tokens", "INT32", False, "most tokens to generate"),
    TensorField("method", "STRING", False, "a decoding method; `otter-export list methods`"),
    TensorField("top_k", "INT32", False, "candidates per token"),
    TensorField("reward_weight", "FP32", False, "weight of the reward; may be negative"),
    TensorField("weights", "STRING", True, "`SIGNAL=WEIGHT` of several signals, instead of one"),
    TensorField(
        "minimum", "STRING", True, "`SIGNAL=VALUE`: leave out candidates below, unless all are"
    ),
    TensorField(
        "gate", "FP32", False, "guide only where the base's entropy is at least this (nats)"
    ),
    TensorField("temperature", "FP32", False, "above 0 samples; 0 takes the best"),
    TensorField("top_p", "FP32", False, "sample from this share of the probability"),
    TensorField("seed", "UINT64", False, "of the sampling; without one it differs every time"),
    TensorField("stop_words", "STRING", True, "texts that end the generation"),
    TensorField("signal", "STRING", False, "the signal that is the reward, if there are several"),
    TensorField(
        "drafts", "STRING", False, "guess tokens ahead: `none`, `lookup`, `auto`, a signal"
    ),
    TensorField("return_candidates", "BOOL", False, "whether to return the candidates"),
    TensorField(
        "return_rewards",
        "BOOL",
        False,
        "whether to return rewards of the prompt; `max_tokens` may then be 0",
    ),
    TensorField("deadline_ms", "INT32", False, "an error instead if it takes longer, in ms"),
    TensorField("repetition_penalty", "FP32", False, "divides positive logits of tokens seen"),
    TensorField("presence_penalty", "FP32", False, "off the logits of generated tokens, -2 to 2"),
    TensorField("frequency_penalty", "FP32", False, "the same for each time they were generated"),
    TensorField("banned_tokens", "INT64", True, "token ids that are never generated"),
    TensorField("min_tokens", "INT32", False, "tokens before the text may end"),
)

#: Shapes are ``[1]``, or ``[n]`` where there may be many.
OUTPUTS: tuple[TensorField, ...] = (
    TensorField("text_output", "STRING", False, "the text, without the stop word"),
    TensorField("token_id", "INT64", True, "the tokens"),
    TensorField(
        "reward", "FP32", True, "the reward of each token; empty if the engine scores none"
    ),
    TensorField("signal_names", "STRING", True, "the signals that are read, if there are several"),
    TensorField("signal_values", "FP32", True, "their values, all of a token before the next's"),
    TensorField(
        "prompt_reward", "FP32", True, "the reward of each token of the prompt, NaN if it has none"
    ),
    TensorField(
        "prompt_signal_values", "FP32", True, "the same as `signal_values`, of the prompt's tokens"
    ),
    TensorField("finish_reason", "STRING", False, "`eos`, `stop`, `length`; empty before the end"),
    TensorField("candidate_counts", "INT32", True, "how many candidates each token had"),
    TensorField("candidate_ids", "INT64", True, "candidates of all tokens, best logit first"),
    TensorField("candidate_logits", "FP32", True, "their logits"),
    TensorField("candidate_rewards", "FP32", True, "their rewards"),
    TensorField("candidate_scores", "FP64", True, "what the method compared"),
)

INPUT_NAMES = tuple(field.name for field in INPUTS)
_OUTPUT = {field.name: field for field in OUTPUTS}


def output(name: str, values: list[object]) -> npt.NDArray[np.generic]:
    """The array of an output."""
    return _OUTPUT[name].array(values)

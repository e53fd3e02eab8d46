"""``trtllm-build``: its flags that are used here, and an "engine" that proves that weights loaded.

Flags, choices and the order of events (model file first, then the configuration, which looks its
class up) are those of TensorRT-LLM 1.0 to 1.2.
"""

from __future__ import annotations

import argparse
import json
from importlib.machinery import SourceFileLoader
from pathlib import Path

from tensorrt_llm.models.modeling_utils import PretrainedConfig


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("checkpoint_dir", "model_cls_file", "model_cls_name", "output_dir"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("workers", "max_batch_size", "max_beam_width", "max_input_len", "max_seq_len"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--max_num_tokens", type=int, required=True)
    parser.add_argument("--max_draft_len", type=int, default=0)
    dtypes = ("auto", "float16", "float32", "bfloat16", "int32", "disable")
    for name in ("gpt_attention_plugin", "gemm_plugin"):
        parser.add_argument(f"--{name}", choices=dtypes)
    for name in ("remove_input_padding", "context_fmha"):
        parser.add_argument(f"--{name}", choices=("enable", "disable"))
    parser.add_argument("--kv_cache_type", choices=("continuous", "paged", "disabled"))
    modes = ("draft_tokens_external", "lookahead_decoding", "medusa", "explicit_draft_tokens")
    parser.add_argument("--speculative_decoding_mode", choices=(*modes, "eagle"))
    return parser.parse_args()


def main() -> None:
    args = arguments()
    module = SourceFileLoader("models", args.model_cls_file).load_module()
    model_class = getattr(module, args.model_cls_name)
    directory = Path(args.checkpoint_dir)
    config = PretrainedConfig.from_json_file(directory / "config.json")
    output = Path(args.output_dir)
    for rank in range(config.mapping.world_size):
        model = model_class.from_checkpoint(directory, config.for_rank(rank))
        names = [name for name, _ in model.named_parameters()]
        print(f"rank {rank}: {len(names)} weights")
        (output / f"rank{rank}.engine").write_text(json.dumps(names))
    (output / "config.json").write_text(json.dumps(vars(args)))


if __name__ == "__main__":
    main()

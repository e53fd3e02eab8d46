"""A GGUF file in another type of llama.cpp: ``SOURCE TARGET NUMBER`` (its ``llama_ftype``)."""

from __future__ import annotations

import sys

import llama_cpp


def main() -> None:
    """Quantise as llama.cpp's own tool does, all matrices alike."""
    source, target, number = sys.argv[1:]
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = int(number)
    parameters.pure = True
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters):
        sys.exit(f"llama.cpp cannot quantise {source}")


if __name__ == "__main__":
    main()

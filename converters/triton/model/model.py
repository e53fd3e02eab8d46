"""The model of this directory for Triton's Python backend.

All of it is in the package ``otter_export`` beside this file, so that a copy that happens to be
installed on the server is not used.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from otter_export.serving.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]

"""A named pipe with content, as a shell's ``<(...)`` gives one."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def written_pipe(path: Path, content: bytes) -> Path:
    """A pipe at ``path`` that holds ``content``; its writer goes once a reader has had time."""
    os.mkfifo(path)
    keep = os.open(path, os.O_RDWR)
    os.write(keep, content)
    threading.Timer(0.2, os.close, [keep]).start()
    return path

"""Installed libraries and GPUs, from package metadata and the driver: no TensorRT is imported."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import re

Version = tuple[int, ...]
#: CUdevice_attribute of the CUDA driver API (cuda.h): compute capability, major and minor.
_MAJOR, _MINOR = 75, 76


def installed_version(module: str) -> str | None:
    """Version of the distribution that installs a top-level module; None if there is none."""
    if importlib.util.find_spec(module) is None:
        return None
    for name in importlib.metadata.packages_distributions().get(module, ()):
        return importlib.metadata.version(name)
    return None


def parsed(version: str) -> Version:
    """``1.7.1.116`` as ``(1, 7, 1, 116)``; what follows the numbers (``rc1``, ``+cu13``) is cut."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release.group().split(".")) if release else ()


def gpu_capabilities() -> tuple[str, ...]:
    """Compute capability of each CUDA device here, as ``8.9``; empty without a driver or a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_capability(driver, index) for index in range(count.value))


def _capability(driver: ctypes.CDLL, index: int) -> str:
    device, value = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDeviceGet(ctypes.byref(device), index)
    parts = []
    for attribute in (_MAJOR, _MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        parts.append(str(value.value))
    return ".".join(parts)

"""What the processor can do in hardware, and how the memory of large arrays is kept."""

import ctypes
import platform

import torch

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of mallopt(3) in malloc.h
_NEVER = 2**31 - 1


def has_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware: emulated, it is slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)


def keep_heap() -> bool:
    """Tell glibc to keep freed memory for the next array; return whether it took that.

    Every layer allocates hundreds of megabytes. Given back and mapped anew, each page costs a fault: half of
    the time of a float32 pass.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(set_option(_MMAP_MAX, 0) and set_option(_TRIM_THRESHOLD, _NEVER))

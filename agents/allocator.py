"""How the C library's allocator serves training."""

from __future__ import annotations

import ctypes
import os
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names of what mallopt(3) sets, from malloc.h
_NEVER = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, for the next time.

    An update frees and takes arrays of the same few megabytes again and again. glibc hands them back to the system and
    gets them anew, page by page and zeroed, which takes about a tenth of an update's time. A setting of the user's
    (MALLOC_...) is left alone.

    Returns:
        Whether it was set: False where there is no glibc, or the user has settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _NEVER) and mallopt(_TRIM_THRESHOLD, _NEVER))

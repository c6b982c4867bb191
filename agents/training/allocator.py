"""How the C library's allocator serves training."""

from __future__ import annotations

import ctypes
import os
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names of what mallopt(3) sets, from malloc.h
_NEVER, _MOST_OF_OLD = 2**31 - 1, 2**25


@cache
def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, for the next time.

    An update frees and takes arrays of the same few megabytes again and again. glibc hands them back to the system and
    gets them anew, page by page and zeroed, which takes about a tenth of an update's time. A setting of the user's
    (MALLOC_... or GLIBC_TUNABLES) is left alone. The process's memory does not shrink from then on.

    Returns:
        Whether it was set: False where the C library has no such setting or refuses it, or the user has settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    if mallopt is None or is_set or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    # Some versions take no more than 32 MiB.
    is_kept = mallopt(_MMAP_THRESHOLD, _NEVER) or mallopt(_MMAP_THRESHOLD, _MOST_OF_OLD)
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER) and is_kept)

"""Makes the C library's memory allocator keep freed memory, which speeds training up."""

from __future__ import annotations

import ctypes
import os
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h, see mallopt(3)
_NEVER, _OLD_MAXIMUM = 2**31 - 1, 2**25


@cache
def keep_freed_memory() -> bool:
    """Makes this process keep the memory that it frees, instead of returning it to the system.

    Every update frees and allocates arrays of a few megabytes. By default glibc returns them to the system and gets
    new, zeroed pages, which takes about a tenth of an update's time. The process's memory then never shrinks. Nothing
    changes where the user has tuned the allocator, by MALLOC_... or GLIBC_TUNABLES.

    Returns:
        Whether freed memory is kept: False where the user has tuned the allocator, or the C library cannot do it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    if mallopt is None or is_set or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    # Older versions take at most 32 MiB.
    is_kept = mallopt(_MMAP_THRESHOLD, _NEVER) or mallopt(_MMAP_THRESHOLD, _OLD_MAXIMUM)
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER) and is_kept)

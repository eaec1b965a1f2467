"""Whether processes that were started are gone."""

from __future__ import annotations

import os
import time


def group_ends(group: int) -> bool:
    """Whether a process group is gone, within the time that a server on a busy machine needs to end."""
    for _ in range(300):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False

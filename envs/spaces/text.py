"""Texts as tokens of a fixed number."""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 4096
MAX_WORDS = 32
_WORD = re.compile(r"[^\W_]+")


@lru_cache(maxsize=1024)  # a mission stays the same for a whole episode
def tokens(text: str) -> NDArray[np.int64]:
    """The first words of a text, in lower case: int64 `[MAX_WORDS]`, 1 to VOCABULARY - 1, and 0 where it is shorter.

    Words are hashed (Weinberger et al. 2009), so that no vocabulary has to be collected, shared by processes and
    kept with every checkpoint; two of a few hundred words may share a token.
    """
    words = _WORD.findall(text.lower())[:MAX_WORDS]
    result = np.zeros(MAX_WORDS, np.int64)
    result[: len(words)] = [zlib.crc32(word.encode()) % (VOCABULARY - 1) + 1 for word in words]
    result.flags.writeable = False
    return result

"""Converts texts to a fixed number of tokens."""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

VOCABULARY_SIZE = 4096
MAX_WORDS = 32
_WORD = re.compile(r"[^\W_]+")


@lru_cache(maxsize=1024)  # texts such as MiniGrid's missions are the same for a whole episode
def tokenize(text: str) -> NDArray[np.int64]:
    """Convert the first `MAX_WORDS` words of a text, in lower case, to tokens.

    Tokens are hashes of words (Weinberger et al., 2009, "Feature Hashing for Large Scale Multitask Learning"), so that
    no vocabulary has to be built, shared between processes and saved in checkpoints. Different words may
    share a token.

    Returns:
        int64 `[MAX_WORDS]`: tokens from 1 to `VOCABULARY_SIZE - 1`, padded with 0. The array is read-only.

    """
    words = _WORD.findall(text.lower())[:MAX_WORDS]
    tokens = np.zeros(MAX_WORDS, np.int64)
    tokens[: len(words)] = [zlib.crc32(word.encode()) % (VOCABULARY_SIZE - 1) + 1 for word in words]
    tokens.flags.writeable = False
    return tokens

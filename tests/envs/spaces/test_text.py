"""Texts become tokens."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from torchppo.envs.spaces.text import MAX_WORDS, VOCABULARY_SIZE, tokenize


def token(word: str) -> int:
    return zlib.crc32(word.encode()) % (VOCABULARY_SIZE - 1) + 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" ,; ", []),
        ("go to the red ball", ["go", "to", "the", "red", "ball"]),
        ("Go TO the red-ball!", ["go", "to", "the", "red", "ball"]),
        ("snake_case 42", ["snake", "case", "42"]),
        ("Öl für 3 Türen", ["öl", "für", "3", "türen"]),
    ],
)
def test_every_word_has_a_token_and_zeros_pad_the_rest(text: str, words: list[str]) -> None:
    assert tokenize(text).tolist() == [token(word) for word in words] + [0] * (MAX_WORDS - len(words))
    assert tokenize(text).dtype == np.int64


def test_words_after_the_last_token_are_dropped() -> None:
    assert tokenize("a " * 100).tolist() == [token("a")] * MAX_WORDS


def test_tokens_are_in_the_vocabulary_and_never_the_padding() -> None:
    tokens = np.concatenate([tokenize(f"word{i}")[:1] for i in range(2000)])
    assert tokens.min() >= 1
    assert tokens.max() < VOCABULARY_SIZE
    assert len(np.unique(tokens)) > 1500


def test_the_hash_is_crc32() -> None:
    assert tokenize("123456789")[0] == 0xCBF43926 % 4095 + 1

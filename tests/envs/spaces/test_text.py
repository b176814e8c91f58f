"""Texts as tokens."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from torchppo.envs.spaces.text import MAX_WORDS, VOCABULARY, tokens


def token(word: str) -> int:
    return zlib.crc32(word.encode()) % (VOCABULARY - 1) + 1


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
def test_every_word_has_its_token_and_zeros_fill_up(text: str, words: list[str]) -> None:
    assert tokens(text).tolist() == [token(word) for word in words] + [0] * (MAX_WORDS - len(words))
    assert tokens(text).dtype == np.int64


def test_words_too_many_are_left_out() -> None:
    assert tokens("a " * 100).tolist() == [token("a")] * MAX_WORDS


def test_tokens_stay_within_the_vocabulary_and_are_never_padding() -> None:
    numbers = np.concatenate([tokens(f"word{i}")[:1] for i in range(2000)])
    assert numbers.min() >= 1
    assert numbers.max() < VOCABULARY
    assert len(np.unique(numbers)) > 1500


def test_the_hash_is_the_common_crc32() -> None:
    assert tokens("123456789")[0] == 0xCBF43926 % 4095 + 1

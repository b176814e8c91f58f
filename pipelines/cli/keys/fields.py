"""The type `Field`, which describes the values of a configuration key, and fields that many keys share."""

from __future__ import annotations

from typing import NamedTuple


class Field(NamedTuple):
    """The values that a key accepts.

    Attributes:
        types: types of the value. `float` includes whole numbers, and `dict` is a group of any keys.
        minimum: numbers must be at least this.
        maximum: numbers must be at most this.
        above: numbers must be greater than this.
        below: numbers must be less than this.
        choices: other values that are accepted.
        nullable: whether `null` is accepted.
        is_component: whether a group of keys needs a `_target_`.
        infinite: whether `inf` is accepted. `nan` never is.
        items: values of the entries of a list; `None` accepts any.
        is_filled: whether a list must have an entry.
        pattern: regular expression of the whole text, and a description of the text; `None` accepts any text.

    """

    types: tuple[type, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[bool | int | str, ...] = ()
    nullable: bool = False
    is_component: bool = False
    infinite: bool = False
    items: Field | None = None
    is_filled: bool = False
    pattern: tuple[str, str] | None = None


MAX_WIDTH = 100_000
"""Largest width of a layer; larger layers do not fit into memory."""

FLAG = Field((bool,))
COUNT = Field((int,), minimum=1)
NATURAL = Field((int,), minimum=0)
NUMBER = Field((float,))
NOT_NEGATIVE = Field((float,), minimum=0)
POSITIVE = Field((float,), above=0)
FRACTION = Field((float,), minimum=0, maximum=1)
TEXT = Field((str,))
LIST = Field((list,))
TEXTS = Field((list,), items=Field((str,), pattern=(r"\D.*", "a name")))
GROUP = Field((dict,))
NULLABLE_COUNT = COUNT._replace(nullable=True)
NULLABLE_POSITIVE = POSITIVE._replace(nullable=True)
COMPONENT = GROUP._replace(is_component=True)
NULLABLE_COMPONENT = COMPONENT._replace(nullable=True)
COMPONENTS = Field((list,), items=COMPONENT)
WIDTH = COUNT._replace(maximum=MAX_WIDTH)
WIDTHS = Field((list,), items=WIDTH, is_filled=True)
LIMIT = POSITIVE._replace(infinite=True)

ENV_ID = r"(?!\d+$)(?:[\w.-]+:)?(?:[\w:-]+/)?[\w:.-]*\w"
"""A Gymnasium id, with or without `module:`, or the dotted path of a class or function."""
FOLDER = r"[^\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]+"
"""Any text without control characters."""

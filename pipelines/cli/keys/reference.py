"""Lists every configuration key with its default, values and meaning, from `conf/` and `schema.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from .fields import Field
from .schema import FIELDS

CONF = Path(__file__).parents[3] / "conf"
ROOT = "train.yaml"

PACKAGE = re.compile(r"# @package (\S+)")
TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list, such as [a,b]",
    dict: "a group of keys",
}


class Key(NamedTuple):
    """One key of one file in `conf/`.

    Attributes:
        key: the dotted key. `*` stands for the name of a coefficient, such as `lr`.
        choice: the choice that has the key, such as `objective=clip`; empty for keys that are always present.
        default: the default as YAML; `${...}` refers to another key.
        values: types and range of the values.
        meaning: what the key does, with its unit.

    """

    key: str
    choice: str
    default: str
    values: str
    meaning: str


def reference() -> list[Key]:
    """Return all keys in the order of `conf/`, without the files of experiments.

    A key of several choices, such as `estimator.gamma`, is listed once for each file that has a comment on it.
    """
    keys = []
    for path in sorted([CONF / ROOT, *CONF.glob("*/*.yaml")], key=lambda path: (len(path.parts), path)):
        if path.parent.name == "experiment":
            continue
        choice = "" if path.name == ROOT else f"{path.parent.name}={path.stem}"
        for key, default, meaning in keys_of_file(path):
            if meaning or not choice:
                field = FIELDS.get(key)
                keys.append(Key(key, choice, default, describe(field) if field else "", meaning))
    return keys


def keys_of_file(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield key, default and comment of every value in a file of `conf/`."""
    text = path.read_text()
    package = PACKAGE.search(text)
    prefix = package[1] if package else "_global_" if path.name == ROOT else path.parent.name
    if prefix == "controller":
        prefix = "controller.*"
    prefix = "" if prefix == "_global_" else f"{prefix}."
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if isinstance(root, yaml.MappingNode):
        yield from walk(root, prefix, text.splitlines())


def walk(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    for name, value in node.value:
        if name.value == "defaults" or name.value in ("_target_", "_partial_"):
            continue
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from walk(value, f"{prefix}{name.value}.", lines)
            continue
        line, start, end = lines[value.start_mark.line], value.start_mark.column, value.end_mark.column
        _, _, comment = line[end:].partition("# ")
        yield f"{prefix}{name.value}", line[start:end].strip(), comment.strip()


def describe(field: Field) -> str:
    """Return the values of a key in words, such as `a number above 0, inf or null`."""
    limits = limits_of(field)
    names = TYPE_NAMES | ({str: field.pattern[1]} if field.pattern else {})
    if field.is_component:
        names[dict] = "a group of keys with a _target_"
    if field.items:
        names[list] = f"{'a non-empty list' if field.is_filled else 'a list'} (each item is {describe(field.items)})"
    words = [names[kind] + (limits if kind in (int, float) else "") for kind in field.types]
    words += [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in field.choices]
    words = [*dict.fromkeys(words), *(["inf"] if field.infinite else []), *(["null"] if field.nullable else [])]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def limits_of(field: Field) -> str:
    """Return the range of a number in words, such as ` between 0 and 1`."""
    if field.minimum is not None and field.maximum is not None:
        return f" between {readable(field.minimum)} and {readable(field.maximum)}"
    limits = {"of at least": field.minimum, "above": field.above, "below": field.below, "up to": field.maximum}
    words = [f"{name} {readable(limit)}" for name, limit in limits.items() if limit is not None]
    return f" {' and '.join(words)}" if words else ""


def readable(limit: float) -> str:
    """Return a limit in a readable form, such as `100,000` or `1e15`."""
    return f"{limit:,}" if isinstance(limit, int) and limit < 1e9 else f"{limit:g}".replace("e+", "e")

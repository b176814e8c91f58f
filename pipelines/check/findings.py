"""What a check has found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        level: `error` if a training cannot work, `note` if it may learn badly, `ok` for a result without a problem.
        topic: what was checked, such as `seeding`.
        message: what was found and what to do.
        override: an override for the command line that helps, or an empty string.

    """

    level: Literal["error", "note", "ok"]
    topic: str
    message: str
    override: str = ""

    def __str__(self) -> str:
        return f"{self.level:<6}{self.topic}: {self.message}" + (f"; {self.override}" if self.override else "")


def error(topic: str, message: str) -> Finding:
    return Finding("error", topic, " ".join(message.split()))


def note(topic: str, message: str, override: str = "") -> Finding:
    return Finding("note", topic, " ".join(message.split()), override)


def ok(topic: str, message: str) -> Finding:
    return Finding("ok", topic, message)


def worst(findings: Iterable[Finding]) -> str:
    """Return the level of the worst finding."""
    levels = {finding.level for finding in findings}
    return next(level for level in ("error", "note", "ok") if level in levels or level == "ok")

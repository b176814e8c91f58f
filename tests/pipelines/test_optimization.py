"""The compiled step takes the same trajectory as the eager one."""

from __future__ import annotations

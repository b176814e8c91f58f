"""Continues runs, and checks that a training in two parts equals one without interruption."""

from .continue_run import resume_run
from .verify import verify_resume

__all__ = ["resume_run", "verify_resume"]

"""Continues runs, and checks that a training in two parts equals one without interruption."""

from .continue_run import resume_run
from .train_again import train_again
from .verify import verify_resume

__all__ = ["resume_run", "train_again", "verify_resume"]

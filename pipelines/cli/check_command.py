"""The command `torchppo check`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig

from ...errors import EnvironmentFailure
from ..check.advice import is_done
from ..check.environment import examine
from ..check.findings import Finding, error, worst
from ..check.training import check_training
from ..components.instantiate import call
from ..components.single_env import is_single_env, single_env_config
from .eval_command import stdout_to_stderr


def check(cfg: DictConfig, overrides: Sequence[str], *, as_json: bool = False) -> int:
    """Check the environment and the policy of a configuration, and print what was found.

    Args:
        cfg: the configuration of a training.
        overrides: overrides of the command line, which are repeated at the end.
        as_json: whether to print one JSON object.

    Returns:
        The exit code: 3 if the environment is broken, else 0.

    """
    torch.set_num_threads(cfg.num_threads)
    with stdout_to_stderr() if as_json else nullcontext():
        findings = [one for one in find_all(cfg) if not is_done(one.override, cfg)]
    added = list(dict.fromkeys(one.override for one in findings if one.override))
    command = " ".join(["torchppo train", *overrides, *added])
    if as_json:
        report = {"findings": [one._asdict() for one in findings], "overrides": added, "command": command}
        print(json.dumps(report, allow_nan=False), flush=True)
    else:
        print(*findings, *([f"\n{command}"] if added else []), sep="\n", flush=True)
    return EnvironmentFailure.exit_code if worst(findings) == "error" else 0


def find_all(cfg: DictConfig) -> list[Finding]:
    """Return all findings about the environment; those about the training follow if there is no error."""
    is_single = is_single_env(cfg.env)
    findings: list[Finding] = []
    if is_single:
        node = single_env_config(cfg.env)
        with isolate_rng():
            findings = examine(lambda: call(node))
    if worst(findings) != "error":
        with isolate_rng():
            try:
                findings += check_training(cfg, has_time_limit=is_single)
            except EnvironmentFailure as problem:
                findings.append(error("training", str(problem)))
    return findings

"""Checks the options of Lightning's Trainer and its loggers, without importing Lightning."""

from __future__ import annotations

import glob
import os
from importlib.util import find_spec

from omegaconf import DictConfig, OmegaConf

from ....errors import ConfigurationError
from .checks import is_off, shown

ACCELERATORS = ("/dev/nvidia*", "/dev/kfd", "/dev/accel*", "/dev/vfio/*", "/System/Library")
"""Files of machines with a GPU or TPU."""
MIN_PROCESSES = 4
"""Number of training processes that are accepted on a machine with fewer cores."""
REPLACED_TRAINER_OPTIONS = {
    "enable_progress_bar": "torchppo has its own progress bar",
    "fast_dev_run": "total_frames=2048 makes a short run",
    "logger": "set logger=csv, logger=[csv,wandb] or logger=[]",
    "barebones": "set logger=[] and eval.episodes=0",
    "default_root_dir": "set run_dir",
    "gradient_clip_val": "set ppo.max_grad_norm",
    "gradient_clip_algorithm": "set ppo.max_grad_norm",
    "accumulate_grad_batches": "set update.minibatch_size",
    "val_check_interval": "set eval.every_frames",
    "check_val_every_n_epoch": "set eval.every_frames",
    "num_sanity_val_steps": "set eval.every_frames",
    "limit_val_batches": "set eval.episodes",
    "limit_test_batches": "use torchppo eval",
    "limit_predict_batches": "use torchppo eval",
    "overfit_batches": "every rollout is new",
    "reload_dataloaders_every_n_epochs": "every rollout is new",
    "inference_mode": "evaluations do not use it",
}
"""Options of Lightning's Trainer that do not work with this command, and what to use instead."""
CLUSTER_VARIABLES = ("MASTER_ADDR", "NODE_RANK", "GROUP_RANK", "SLURM_JOB_ID", "LSB_JOBID", "OMPI_COMM_WORLD_RANK")
"""Environment variables of programs that start training processes on several machines."""


def check_trainer(options: DictConfig, loggers: DictConfig) -> None:
    """Raise a ConfigurationError for options of Lightning's Trainer and loggers that cannot work here."""
    check_packages(loggers)
    for key, instead in REPLACED_TRAINER_OPTIONS.items():
        if not is_off(options.get(key)) or (options.get(key) is False and key == "logger"):
            raise ConfigurationError(
                f"trainer.{key}={shown(options[key])} does not work with torchppo train; {instead}"
            )
    if options.get("devices") in (0, "0", []):
        raise ConfigurationError(f"trainer.devices={shown(options.devices)} leaves no process; use 1 or auto")
    num_nodes, devices = options.get("num_nodes", 1), options.get("devices")
    if num_nodes > 1 and not any(name in os.environ for name in CLUSTER_VARIABLES):
        raise ConfigurationError(f"trainer.num_nodes={num_nodes} needs SLURM or torchrun; start the command with it")
    most = max(os.cpu_count() or 1, MIN_PROCESSES)
    is_cpu = options.get("accelerator") == "cpu" or not any(map(glob.glob, ACCELERATORS))
    is_number = options.get("accelerator") in ("auto", "cpu") and is_cpu and isinstance(devices, int)
    if is_number and devices > most:
        raise ConfigurationError(f"trainer.devices={devices} must be at most {most} on the CPUs of this machine")


def check_packages(loggers: DictConfig) -> None:
    """Raise a ConfigurationError if the package of a logger is not installed."""
    for name in ("wandb", "mlflow"):
        if str(OmegaConf.select(loggers, f"{name}._target_")).startswith("lightning.") and not find_spec(name):
            raise ConfigurationError(f"logger={name} needs pip install 'torchppo[{name}]'")

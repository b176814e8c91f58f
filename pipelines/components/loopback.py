"""Keeps the ports of ranks on one machine off the network."""

from __future__ import annotations

import os
import socket
from typing import Any

from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

LOOPBACK = "127.0.0.1"


def listen_on_loopback(trainer: Trainer) -> None:
    """Let the ranks of one machine listen on the loopback interface, where PyTorch would listen on all interfaces.

    Addresses and interfaces that environment variables name stay, and so does the store of torchrun. Tested with
    Lightning 2.6 and PyTorch 2.13.
    """
    strategy: Any = trainer.strategy
    is_launched = distributed.is_available() and distributed.is_torchelastic_launched()
    if not isinstance(trainer.strategy, DDPStrategy) or trainer.num_nodes > 1 or is_launched:
        return
    if os.environ.setdefault("MASTER_ADDR", LOOPBACK) != LOOPBACK:
        return
    for name in [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # it is in C++

    set_up = strategy.setup_distributed

    def set_up_on_loopback() -> None:
        strategy.set_world_ranks()
        if strategy.global_rank == 0 and not distributed.is_initialized():
            port = strategy.cluster_environment.main_port
            file = socket.create_server((LOOPBACK, port)).detach()
            strategy.store = TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=file)
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # connect to this store
        try:
            set_up()
        finally:
            del os.environ["TORCHELASTIC_USE_AGENT_STORE"]

    strategy.setup_distributed = set_up_on_loopback

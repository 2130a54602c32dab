"""Processes that train one network together: torch.distributed, a process for each device.

Every process runs the same command. Process 0 makes the stages; in those that train, all take part
(:mod:`secateur.training.shards`), and otherwise the rest waits. A process that was started alone is
process 0 of 1, and nothing here costs it anything.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from secateur.console import say
from secateur.environment import cores
from secateur.errors import UsageError

_PATIENCE = timedelta(days=30)  # the others wait while process 0 makes a stage alone


def join(device: torch.device) -> torch.device:
    """Meet the other processes, where there are any, and return this process's own device.

    Args:
        device: As the user chose it; of a GPU, each process takes the one of its local number.

    Raises:
        UsageError: This machine has fewer GPUs than processes.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ
    if alone or dist.is_initialized():
        return device
    local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UsageError(
                "too few GPUs",
                where="--devices",
                expected=f"at most {torch.cuda.device_count()} processes on this machine",
                found=os.environ.get("LOCAL_WORLD_SIZE", local + 1),
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    return device


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def agreed(value: Any) -> Any:
    """What process 0 gives here, in every process."""
    if world() == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
    return holder[0]


def add_up(*tensors: Tensor) -> None:
    """Replace tensors of one type by their sums over all processes, in place, in one exchange."""
    if world() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


@torch.no_grad()
def equalize_buffers(*networks: nn.Module) -> None:
    """Give every process the running statistics of process 0."""
    if world() == 1:
        return
    for network in networks:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def launch(processes: int, arguments: list[str]) -> None:
    """Run this command in several processes on this machine, by torch's own launcher.

    Args:
        processes: How many.
        arguments: Of the command line.

    Raises:
        SystemExit: A process failed; its exit code. It has printed why.
    """
    import logging

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # we say it in one line
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="secateur",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "secateur", *arguments)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if number:
            say(f"process {number} of {processes} failed with exit code {failure.exitcode}")
        raise SystemExit(abs(failure.exitcode) or 1) from None

"""Several training processes as one: started by torchrun, averaging gradients over gloo or NCCL.

Shape shorthand: P processes; each sees its own share of every batch.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn


def init_process_group(device: str = "cpu") -> None:
    """Join the group that torchrun's variables describe; nothing to do for a single process.

    On GPUs each process takes the one of its local rank; what lies on the CPU (clocks, losses) still goes over gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        on_gpu = device.startswith("cuda")
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")


def destroy_process_group() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Rank of this process; 0 logs and saves."""
    return dist.get_rank() if dist.is_initialized() else 0


def launched_rank() -> int:
    """The rank that torchrun gave this process, whether or not it has joined; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """Number P of training processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def threads_each() -> int:
    """Threads of torch for this process: as many as it has, but no more than its share of the machine's cores.

    torchrun gives each process one unless OMP_NUM_THREADS says otherwise; processes whose threads have no core of their
    own wait for one another.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(torch.get_num_threads(), max(1, cores // local_processes))


def share_start(network: nn.Module) -> None:
    """Give every process the first one's weights and buffers."""
    if process_count() > 1:
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, 0)


def average_gradients(network: nn.Module) -> None:
    """Replace every gradient by its mean over the processes; a parameter unused here counts as zero.

    One flat all-reduce after the backward pass: for networks this small that costs less than overlapping it, and it
    does not care which parameters a batch used.
    """
    if process_count() == 1:
        return
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    flat = torch.cat(
        [
            (parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)).flatten()
            for parameter in parameters
        ]
    )
    dist.all_reduce(flat)
    flat /= process_count()
    offset = 0
    for parameter in parameters:
        parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()


def mean_over_processes(values: dict[str, float]) -> dict[str, float]:
    """The mean of each value over the processes; NaN anywhere is NaN everywhere."""
    if process_count() == 1:
        return values
    tensor = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(tensor)
    return dict(zip(values, (tensor / process_count()).tolist(), strict=True))


def broadcast_floats(*values: float) -> list[float]:
    """The first process's values, on every process: clocks and signals differ between them."""
    tensor: Tensor = torch.tensor(values, dtype=torch.float64)
    if process_count() > 1:
        dist.broadcast(tensor, 0)
    return tensor.tolist()

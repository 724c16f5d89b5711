"""One of two processes: writes the gradients of a small flow under DistributedDataParallel to a file."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from invertible_attention.attention.layer import InvertibleAttention
from invertible_attention.flows import DiagonalGaussian, Flow, InvertibleResNet


def make_flow() -> Flow:
    torch.manual_seed(0)
    net = InvertibleResNet((1, 4, 4), blocks=(2, 1), hidden_channels=8, attention=InvertibleAttention)
    return Flow(net, DiagonalGaussian(16)).double().train()


def images(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(8, 1, 4, 4, dtype=torch.float64, generator=generator)


def loss_of(flow: torch.nn.Module, rank: int) -> torch.Tensor:
    # each process draws its own probes and number of terms
    torch.manual_seed(100 + rank)
    return -flow(images(2).chunk(2)[rank]).mean()


def main(rank: int, store: str, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    flow = make_flow()
    parallel = DistributedDataParallel(flow)
    with torch.no_grad():
        parallel(images(1).chunk(2)[rank])  # initializes from both processes' batches
    loss_of(parallel, rank).backward()
    gradients = {name: p.grad for name, p in flow.named_parameters()}
    torch.save({"gradients": gradients, "state": flow.state_dict()}, f"{output}{rank}.pt")
    # Gloo can hang in its teardown if the other process exits first; the results are already saved.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])

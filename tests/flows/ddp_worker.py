"""One process of two: the gradients of a small flow under DistributedDataParallel, written to a file."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from invertible_attention.attention.layer import InvertibleAttention
from invertible_attention.flows import i_resnet


def make_flow() -> torch.nn.Module:
    torch.manual_seed(0)
    flow = i_resnet(
        (1, 4, 4), levels=17, blocks=(2, 1), hidden_channels=8, attention=InvertibleAttention
    ).double()
    return flow.train()


def images() -> torch.Tensor:
    return torch.randint(0, 17, (8, 1, 4, 4), generator=torch.Generator().manual_seed(1)).double()


def loss_of(flow: torch.nn.Module, rank: int) -> torch.Tensor:
    # each process draws its own noise, probes and number of terms
    torch.manual_seed(100 + rank)
    return -flow(images().chunk(2)[rank]).mean()


def main(rank: int, store: str, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    flow = make_flow()
    flow.initialize(images().chunk(2)[rank])
    parallel = DistributedDataParallel(flow)
    loss_of(parallel, rank).backward()
    gradients = {name: p.grad for name, p in flow.named_parameters()}
    torch.save({"gradients": gradients, "state": flow.state_dict()}, f"{output}{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])

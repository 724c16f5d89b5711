"""One of two processes: a step of a conditional zuko flow with attention under DistributedDataParallel."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
import zuko
from torch.nn.parallel import DistributedDataParallel

import invertible_attention as ia
from invertible_attention.interop import to_zuko


class NegativeLogLikelihood(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        flow = zuko.flows.MAF(4, 3, transforms=2, hidden_features=(8,))
        layer = ia.InvertibleAttention(2, "embedded_gaussian", context_channels=3, logdet=ia.Exact())
        self.flow = zuko.lazy.Flow([to_zuko(layer, view=(2, 2)), *flow.transform.transforms], flow.base)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return -self.flow(c).log_prob(x).mean()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(8, 4, generator=generator).double(),
        torch.randn(8, 3, generator=generator).double(),
    )


def main(rank: int, store: str, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    x, c = (part.chunk(2)[rank] for part in data())
    model = NegativeLogLikelihood().double()
    with torch.no_grad():
        model(x, c)
    parallel = DistributedDataParallel(model)  # kept: its reducer does the averaging in backward
    parallel(x, c).backward()
    torch.save({name: p.grad for name, p in model.named_parameters()}, f"{output}{rank}.pt")
    # Gloo can hang in its teardown if the other process exits first; the results are already saved.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])

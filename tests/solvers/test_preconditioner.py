"""What solvers know of the inverse of I + J at a point."""

from __future__ import annotations

import torch
from torch import Tensor

from invertible_attention.solvers.preconditioner import Preconditioner


class Square:
    """Each entry squared, whose Jacobian is known at every point."""

    def __init__(self) -> None:
        self.computed = 0

    def __call__(self, x: Tensor, factor: Tensor) -> Tensor:
        return factor[:, None] * x.square()

    def linear_part(self, x: Tensor, factor: Tensor) -> Diagonal:
        self.computed += 1
        return Diagonal(2 * factor[:, None] * x)


class Diagonal:
    def __init__(self, entries: Tensor) -> None:
        self.entries = entries

    def apply(self, v: Tensor, *, transposed: bool = False) -> Tensor:
        return self.entries * v

    def solve(self, r: Tensor, *, transposed: bool = False) -> Tensor:
        return r / (1 + self.entries)

    def log_determinant(self) -> Tensor:
        return self.entries.log1p().sum(1)


class Nearer(Diagonal):
    def precondition(self, r: Tensor, *, transposed: bool = False) -> Tensor:
        return (2.0 if transposed else 3.0) * r


def test_is_the_linear_part_of_the_samples_asked_for():
    branch, point, factor = Square(), torch.rand(4, 3), torch.rand(4)
    about = Preconditioner(branch, point, (factor,))
    for samples in (None, torch.tensor([2, 0]), torch.tensor([2, 0]), torch.tensor([3])):
        rows = slice(None) if samples is None else samples
        residual = torch.randn_like(point[rows])
        expected = residual / (1 + 2 * factor[rows, None] * point[rows])
        torch.testing.assert_close(about(residual, samples), expected)
    assert branch.computed == 3


def test_takes_what_is_nearer_unless_it_must_be_linear():
    class Branch(Square):
        def linear_part(self, x: Tensor, factor: Tensor) -> Diagonal:
            return Nearer(super().linear_part(x, factor).entries)

    point, factor = torch.rand(4, 3), torch.rand(4)
    about, residual = Preconditioner(Branch(), point, (factor,)), torch.randn(4, 3)
    torch.testing.assert_close(about(residual), 3 * residual)
    torch.testing.assert_close(about(residual, transposed=True), 2 * residual)
    torch.testing.assert_close(about(residual, fixed=True), residual / (1 + 2 * factor[:, None] * point))


def test_is_nothing_where_nothing_is_known():
    class Unknown(Square):
        def linear_part(self, x: Tensor, factor: Tensor) -> None:
            return None

    point, residual = torch.rand(2, 3), torch.randn(2, 3)
    assert Preconditioner.known(Unknown())
    assert torch.equal(Preconditioner(Unknown(), point, (torch.rand(2),))(residual), residual)
    assert not Preconditioner.known(torch.sin)
    assert torch.equal(Preconditioner(torch.sin, point, ())(residual), residual)

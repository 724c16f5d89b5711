"""Solvers of ``x + g(x) = z``, per sample, with an honest account of each."""

from invertible_attention.solvers.anderson import Anderson
from invertible_attention.solvers.base import Solver
from invertible_attention.solvers.fixed_point import FixedPoint
from invertible_attention.solvers.implicit import implicit_gradient, is_differentiated
from invertible_attention.solvers.newton_krylov import NewtonKrylov
from invertible_attention.solvers.solution import ConvergenceError, Solution

__all__ = [
    "Anderson",
    "ConvergenceError",
    "FixedPoint",
    "NewtonKrylov",
    "Solution",
    "Solver",
    "implicit_gradient",
    "is_differentiated",
]

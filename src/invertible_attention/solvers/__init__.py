"""Solvers of ``x + g(x) = z``, per sample, with an honest account of each.

How to choose:

- :class:`Anderson`, the default: fewest evaluations on contractions, and it always solves those that are certified.
- :class:`FixedPoint`: the paper's Algorithm 1, to reproduce it, or where memory is scarce: it keeps two iterates
  where Anderson keeps a dozen.
- :class:`NewtonKrylov`: for branches that are not contractions, such as relaxed layers, where the others fail.
"""

from torch.serialization import add_safe_globals

from invertible_attention._differentiation import is_differentiated
from invertible_attention.solvers.anderson import Anderson
from invertible_attention.solvers.base import Solver
from invertible_attention.solvers.fixed_point import FixedPoint
from invertible_attention.solvers.implicit import implicit_gradient
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

# A checkpoint may contain a solver and what it returned.
add_safe_globals([Anderson, FixedPoint, NewtonKrylov, Solution])

"""The audit on maps with known properties, including non-invertible ones."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import invertible_attention as ia
from invertible_attention import flows as F
from invertible_attention.bijection import Bijection
from invertible_attention.lipschitz import audit

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Contraction(nn.Module):
    """``x + Wx`` with ``‖W‖ = 0.8``; inverts exactly, and reports the certificate it is given."""

    def __init__(self, promise: float = 0.8) -> None:
        super().__init__()
        W = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
        self.W = nn.Parameter(W * torch.linspace(0.1, 0.8, 6, dtype=torch.float64))
        self.promise = promise

    def lipschitz_bound(self) -> torch.Tensor:
        return torch.tensor(self.promise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x @ self.W.T

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(torch.eye(6).to(z) + self.W, z.T).T


class Sine(nn.Module):
    """``x + a sin x`` per entry: not injective for ``a > 1``; inverted by 200 fixed-point steps."""

    def __init__(self, amplitude: float) -> None:
        super().__init__()
        self.amplitude = nn.Parameter(torch.tensor(amplitude, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.amplitude * x.sin()

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        x = z
        for _ in range(200):
            x = z - self.amplitude * x.sin()
        return x


class Coupling(nn.Module):
    """A NICE-like coupling that returns its log-determinant too."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = x.chunk(2, 1)
        return torch.cat([a, b + 5 * self.shift(a)], 1), torch.zeros(len(x))

    def inverse(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = z.chunk(2, 1)
        return torch.cat([a, b - 5 * self.shift(a)], 1), torch.zeros(len(z))


def points(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, size, dtype=torch.float64)


def test_certified_contraction():
    module, x = Contraction(), points(5, 6)
    report = audit(module, x)
    torch.testing.assert_close(report.lipschitz_estimate, torch.full((5,), 0.8).double())
    smallest = torch.linalg.svdvals(torch.eye(6).double() + module.W)[-1].detach()
    torch.testing.assert_close(report.smallest_stretch, smallest.expand(5))
    assert report.certificate == pytest.approx(0.8)
    assert report.certified
    assert report.passed
    assert report.recovered == [0, 1, 2, 3, 4]
    assert not report.searched
    assert (report.relative_error < 1e-13).all()
    assert "Certified" in str(report)


def test_violated_certificate_is_reported():
    report = audit(Contraction(promise=0.5), points(3, 6))
    assert report.exceeds_certificate.all()
    assert not report.passed
    assert "THE CERTIFICATE IS WRONG" in str(report)


def test_estimate_is_not_reported_as_a_certificate():
    module = Contraction(promise=math.inf)
    report = audit(module, points(3, 6))
    assert not report.certified
    assert report.passed
    assert report.searched
    assert report.not_injective == []
    assert "Nothing is certified" in str(report)
    assert "proves nothing" in str(report)


def test_non_injective_map_is_reported():
    # x = 1 has f(x) = 1 + 2 sin 1 = 2.68, which is also f(1.7…) and f(4.6…)
    x = torch.tensor([[1.0], [1.5], [2.5]], dtype=torch.float64)
    report = audit(Sine(2.0), x)
    other = report.second_preimage
    assert 0 in report.not_injective
    for i in report.not_injective:
        assert abs(other[i] - x[i]) > 0.01
        assert float(other[i] + 2 * other[i].sin()) == pytest.approx(float(x[i] + 2 * x[i].sin()), abs=1e-8)
        torch.testing.assert_close(report.second_preimage_distance[i], (other[i] - x[i]).abs().sum())
    assert not report.passed
    assert "NOT INJECTIVE" in str(report)
    assert "no solver can recover it" in str(report)


def has_second_preimage(x: torch.Tensor) -> torch.Tensor:
    """Whether any entry of ``x + 2 sin x`` is taken more than once, counted as changes of sign on a grid."""
    grid = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    difference = (grid + 2 * grid.sin()) - (x + 2 * x.sin())[..., None]
    roots = (difference[..., 1:] * difference[..., :-1] < 0).sum(-1)
    return (roots > 1).any(1)


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_second_preimage_is_found_in_few_dimensions(size, seed):
    torch.manual_seed(seed)
    x = points(4, size)
    report = audit(Sine(2.0), x)
    assert report.not_injective == has_second_preimage(x).nonzero().flatten().tolist()


def test_second_preimages_are_found_in_many_dimensions():
    x = points(4, 300).float()
    report = audit(Sine(2.0).float(), x, budget=2000)
    assert report.not_injective == [0, 1, 2, 3]
    image, other = (Sine(2.0)(value.double()) for value in (x, report.second_preimage))
    residual = (image - other).norm(dim=1) / (1 + image.norm(dim=1))
    assert (residual < 1e-4).all()
    assert report.expansive == [0, 1, 2, 3]
    assert (report.lipschitz_estimate <= 2 * (1 + 1e-3)).all()


def test_no_false_second_preimage():
    for amplitude in (0.5, 0.9, 0.999):
        report = audit(Sine(amplitude), points(4, 5))
        assert report.not_injective == []
        assert report.second_preimage_distance.isnan().all()


def test_inverse_reaching_another_preimage_is_not_an_error():
    class Other(Sine):
        def inverse(self, z):
            return torch.full_like(z, math.pi)

    x = torch.zeros(1, 1, dtype=torch.float64)
    module = Other(math.pi)  # f(0) = 0 and f(π) = π: not equal, so this one is wrong
    assert audit(module, x).silently_wrong == [0]

    class Square(nn.Module):
        def forward(self, x):
            return x * x

        def inverse(self, z):
            return z.sqrt()

    report = audit(Square(), torch.tensor([[-1.0], [2.0]]))
    assert report.silently_wrong == []
    assert report.recovered == [1]
    assert report.not_injective == [0, 1]
    assert "another preimage" in str(report)


def test_silently_wrong_inverse_is_reported():
    class Sloppy(Contraction):
        def inverse(self, z):
            return z - z @ self.W.T  # one fixed-point step

    report = audit(Sloppy(), points(4, 6))
    assert report.silently_wrong == [0, 1, 2, 3]
    assert report.recovered == []
    assert not report.passed
    assert "WRONG WITHOUT SAYING SO" in str(report)


def test_claim_of_convergence_is_checked():
    class Boaster(Contraction):
        def solve_inverse(self, z):
            return SimpleNamespace(
                value=z,
                converged=torch.tensor([True, False]),
                evaluations=torch.tensor([7, 100]),
                error_bound=torch.tensor([0.1, 0.2]),
            )

    report = audit(Boaster(), points(2, 6))
    assert report.silently_wrong == [0]
    assert report.failed == [1]
    assert report.evaluations.tolist() == [7, 100]
    assert report.error_bound.tolist() == pytest.approx([0.1, 0.2])
    assert "evaluations" in str(report)


def test_failure_of_one_sample_does_not_hide_the_others():
    class Strict(Contraction):
        def inverse(self, z):
            if (z.abs() > 50).any():
                raise RuntimeError("did not converge: |z| > 50")
            return super().inverse(z)

    x = points(3, 6)
    x[1] *= 1000
    report = audit(Strict(), x)
    assert report.recovered == [0, 2]
    assert report.failed == [1]
    assert "did not converge" in report.inverse_errors[1]
    assert "sample 1: RuntimeError" in str(report)
    assert report.silently_wrong == []


def test_output_may_be_a_tuple():
    report = audit(Coupling(), points(4, 4))
    assert report.passed
    assert report.certificate == math.inf
    assert report.converged is None
    assert report.evaluations is None


def test_shape_may_change():
    class Flatten(nn.Module):
        def forward(self, x):
            return 2 * x.flatten(1)

        def inverse(self, z):
            return z.unflatten(1, (2, 3)) / 2

    report = audit(Flatten(), points(3, 6).unflatten(1, (2, 3)))
    assert report.passed
    assert report.lipschitz_estimate is None
    torch.testing.assert_close(report.smallest_stretch, torch.full((3,), 2.0).double())
    assert "no residual form" in str(report)


class Block(Bijection):
    def __init__(self, scale: float, promise: float) -> None:
        super().__init__()
        self.scale, self.promise = scale, promise

    def lipschitz_bound(self):
        return torch.tensor(self.promise)

    def forward_and_logdet(self, x, *, context=None, mask=None):
        return x * (1 + self.scale), torch.zeros(len(x))

    def inverse_and_logdet(self, z, *, context=None, mask=None):
        return z / (1 + self.scale), torch.zeros(len(z))


class Chain(Block):
    """A composition: it has no bound of its own, its blocks have."""

    lipschitz_bound = property()  # pyright: ignore

    def __init__(self, *blocks):
        super().__init__(0.0, 0.0)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x, *, context=None, mask=None):
        for block in self.blocks:
            x = block(x)
        return x.unflatten(1, (2, -1))

    def inverse(self, z, *, context=None, mask=None):
        z = z.flatten(1)
        for block in reversed(self.blocks):
            z = block.inverse(z)
        return z


@pytest.mark.parametrize(("promises", "exceeded"), [((0.5, 0.3), False), ((0.5, 0.2), True)])
def test_blocks_of_a_composition_are_measured_separately(promises, exceeded):
    flow = Chain(Block(0.4, promises[0]), Block(0.25, promises[1]))
    report = audit(flow, points(2, 6))
    torch.testing.assert_close(report.lipschitz_estimate, torch.full((2,), 0.4).double())
    assert report.certificate == 0.5
    assert bool(report.exceeds_certificate.all()) == exceeded
    assert report.recovered == [0, 1]


def test_context_is_forwarded():
    class Shift(nn.Module):
        def forward(self, x, context):
            return x + context

        def inverse(self, z, context):
            return z - context

    report = audit(Shift(), points(3, 2), context=points(3, 2))
    assert report.passed


def test_module_is_not_modified():
    module = nn.Sequential()
    module = Coupling()
    module.train()
    module.shift[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    audit(module, points(2, 4))
    assert module.training
    assert not module.shift[1].training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in module.parameters())


def test_random_layers_are_audited_in_evaluation_mode():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x):
            return x + 0.5 * self.dropout(x)

        def inverse(self, z):
            return z / 1.5

    assert audit(Noisy().train(), points(3, 6)).passed


def test_random_map_is_not_reported_as_a_wrong_inverse():
    class Dequantize(nn.Module):
        def forward(self, x):
            return (x + torch.rand_like(x)) / 4

        def inverse(self, z):
            return (4 * z).floor()

    report = audit(Dequantize(), torch.tensor([[0.0, 3.0], [1.0, 2.0]]))
    assert report.random == [0, 1]
    assert report.recovered == [0, 1]
    assert report.silently_wrong == []
    assert not report.searched
    assert "RANDOM" in str(report)
    assert audit(Contraction(), points(2, 6)).random == []


def test_same_seed_same_report():
    module, x = Sine(2.0), points(3, 4)
    assert audit(module, x, seed=3).to_dict() == audit(module, x, seed=3).to_dict()


def test_dictionary_is_json_and_matches_the_report():
    x = points(3, 4)
    x[2] = math.nan
    report = audit(Sine(2.0), x)
    stored = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert stored["not_injective"] == report.not_injective == [0, 1]
    assert stored["certificate"] is None
    assert stored["relative_error"][2] is None
    assert stored["event_shape"] == [4]
    assert stored["verdict"] == report.verdict()
    assert stored["silently_wrong"] == report.silently_wrong
    assert 2 in stored["silently_wrong"]


def test_low_precision():
    report = audit(Coupling().bfloat16(), points(3, 4).bfloat16())
    assert report.dtype == "bfloat16"
    assert report.not_injective == []
    assert len(report.recovered) == 3


def test_search_can_be_forced_and_disabled():
    assert audit(Contraction(), points(2, 6), search=True).searched
    report = audit(Sine(2.0), points(2, 6), search=False)
    assert not report.searched
    assert report.not_injective == []


def test_long_batches_are_abbreviated_in_the_table_only():
    report = audit(Contraction(), points(20, 6))
    assert "… and 8 more" in str(report)
    assert "Recovered: 20 of 20" in str(report)


@pytest.mark.parametrize(
    ("module", "x", "message"),
    [
        (nn.ReLU(), torch.ones(1, 2), "ReLU has no inverse"),
        (Coupling(), torch.ones(2, 4, dtype=torch.int64), "int64"),
        (Coupling(), torch.ones(0, 4), r"\(0, 4\)"),
        (Coupling(), torch.ones(4), r"\(4,\)"),
    ],
)
def test_bad_input_error_shows_the_value(module, x, message):
    with pytest.raises(ValueError, match=message):
        audit(module, x)


def test_inverse_of_wrong_shape_is_refused():
    class Wrong(Contraction):
        def inverse(self, z):
            return z[:, :3]

    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        audit(Wrong(), points(2, 6))


def test_non_tensor_output_is_refused():
    class Wrong(Contraction):
        def forward(self, x):
            return {"z": x}

    with pytest.raises(ValueError, match="dict"):
        audit(Wrong(), points(2, 6))


def attention(solver, dtype):
    layer = ia.InvertibleAttention(4, constraint=ia.Certified(0.9, radius=3.0), solver=solver)
    return layer.to(dtype).eval(), torch.randn(4, 4, 6, dtype=dtype)


@pytest.mark.parametrize(
    ("solver", "dtype"),
    [(ia.Anderson(tolerance=1e-6), torch.float64), (ia.FixedPoint(tolerance=1e-3), torch.float32)],
)
def test_solver_is_checked_against_its_own_tolerance(solver, dtype):
    report = audit(*attention(solver, dtype))
    assert (report.residual > report.tolerance).any()
    assert report.silently_wrong == []
    assert report.passed
    assert (report.tolerated_residual == solver.tolerance).all()


@pytest.mark.parametrize("wrong", [1e-2, 1e-4])
def test_solver_missing_its_tolerance_is_reported(wrong):
    layer, x = attention(ia.Anderson(tolerance=1e-6), torch.float64)

    class Off(ia.InvertibleAttention):
        def solve_inverse(self, z, *, context=None, mask=None):
            solution = super().solve_inverse(z, context=context, mask=mask)
            return replace(solution, value=solution.value + wrong)

    layer.__class__ = Off
    report = audit(layer, x)
    assert report.silently_wrong == [0, 1, 2, 3]
    assert report.exceeds_error_bound.all()
    assert not report.passed
    assert "THE ERROR BOUND IS WRONG" in str(report)


def test_given_tolerance_decides_recovery():
    report = audit(*attention(ia.Anderson(tolerance=1e-4), torch.float64), tolerance=1e-9)
    assert report.silently_wrong == []
    assert report.recovered == []


def test_exceeded_error_bound_is_reported_even_for_a_solved_equation():
    class Boaster(Contraction):
        def solve_inverse(self, z):
            value = self.inverse(z) + 1e-9
            converged = torch.ones(len(z), dtype=torch.bool)
            return SimpleNamespace(
                value=value,
                converged=converged,
                evaluations=converged.int(),
                error_bound=torch.full((len(z),), 1e-12),
            )

    report = audit(Boaster(), points(2, 6))
    assert report.silently_wrong == []
    assert report.exceeds_error_bound.all()
    assert not report.passed


def test_blocks_of_a_chain_are_certified_individually_and_jointly():
    blocks = [
        F.Residual(F.LipschitzLinearBranch(3, 8), solver=ia.FixedPoint(tolerance=1e-4)) for _ in range(3)
    ]
    flow, x = F.Sequential(*blocks).double(), points(4, 3)
    report = audit(flow, x)
    assert report.certified
    assert report.passed
    assert (report.residual > report.tolerance).any()
    assert (report.tolerated_residual >= 3e-4).all()

    class Off(F.Sequential):
        def inverse(self, z, *, context=None, mask=None):
            return super().inverse(z, context=context, mask=mask) + 0.1

    flow.__class__ = Off
    assert audit(flow, x).silently_wrong == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("make", [lambda: ia.InvertibleAttention(4), lambda: F.ActNorm(4)])
def test_uninitialized_module_initializes_in_training_and_is_refused_in_evaluation(make, dtype):
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    module = F.Sequential(make(), make())
    with pytest.raises(RuntimeError, match="not initialized"):
        audit(module.eval(), x, budget=10, steps=3)
    assert audit(module.train(), x, budget=10, steps=3).passed
    assert module.training
    once = copy.deepcopy(module.state_dict())
    audit(module, 2 * x, budget=10, steps=3)
    torch.testing.assert_close(dict(module.state_dict()), dict(once), rtol=0, atol=0)

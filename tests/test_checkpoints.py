"""Settings of a layer can be loaded from a checkpoint without running code."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
import torch

import invertible_attention as ia
from invertible_attention.attention import Constraint, PositionPrior, Response, Unconstrained
from invertible_attention.logdet import LogDetEstimator
from invertible_attention.solvers import Solver

SETTINGS = {
    "constraints": [
        ia.Certified(0.8),
        ia.Certified(0.8, radius=2.0),
        ia.Relaxed(0.5, 0.7, True),
        Unconstrained(),
        ia.Triangular("columns"),
    ],
    "solvers": [ia.Anderson(), ia.FixedPoint(7, 1e-3), ia.NewtonKrylov(tolerance=1e-4)],
    "estimators": [ia.Exact(), ia.PowerSeries(terms=3), ia.RussianRoulette(tail="poisson")],
    "responses": [ia.Gaussian, ia.EmbeddedGaussian, ia.DotProduct, ia.Concatenation],
    "layers": [ia.InvertibleAttention, ia.Attention],
}


def concrete(kind):
    below = [leaf for child in kind.__subclasses__() for leaf in concrete(child)]
    package, _, folder = kind.__module__.partition(".")
    own = (
        package == "invertible_attention" and not folder.startswith("experiments") and kind.__name__[0] != "_"
    )
    return below + ([kind] if own and not getattr(kind, "__abstractmethods__", None) else [])


def test_settings_are_loaded_without_running_code(tmp_path):
    torch.save(SETTINGS, tmp_path / "settings.pt")
    assert torch.load(tmp_path / "settings.pt", weights_only=True) == SETTINGS


@pytest.mark.parametrize("kind", [Constraint, Solver, LogDetEstimator, Response, PositionPrior])
def test_settings_are_torch_safe_globals(kind):
    import_module("invertible_attention.interop")
    assert set(concrete(kind)) <= set(torch.serialization.get_safe_globals())


def test_solutions_and_priors_are_loaded(tmp_path):
    layer = ia.InvertibleAttention(4, position_prior=ia.TorusPrior(1))
    z = torch.randn(2, 4, 6)
    stored = {"solution": layer.solve_inverse(z), "prior": layer.branch.position_prior}
    torch.save(stored, tmp_path / "stored.pt")
    loaded = torch.load(tmp_path / "stored.pt", weights_only=True)
    assert torch.equal(loaded["solution"].value, stored["solution"].value)
    assert torch.equal(loaded["prior"]((6,)), stored["prior"]((6,)))


PROGRAM = """
{imports}
path = {path!r}
class Lit(lightning.LightningModule):
    def __init__(self, channels, constraint, solver, logdet, response):
        super().__init__()
        self.save_hyperparameters()
        self.layer = ia.InvertibleAttention(
            channels, response, constraint=constraint, solver=solver, logdet=logdet
        )

{body}
"""
SAVE = """
module = Lit(4, ia.Certified(0.8), ia.FixedPoint(), logdet=ia.Exact(), response=ia.DotProduct)
trainer = lightning.Trainer(logger=False, enable_checkpointing=False, barebones=True)
trainer.strategy.connect(module)
trainer.save_checkpoint(path)
"""
LOAD = """
module = Lit.load_from_checkpoint(path)
layer = module.layer
print(layer.branch.constraint, layer.solver, layer.logdet, type(layer.branch.response).__name__)
"""


@pytest.mark.slow
def test_lightning_loads_a_module_in_a_fresh_process(tmp_path):
    pytest.importorskip("lightning", reason="needs pip install 'invertible-attention[experiments]'")
    path = str(tmp_path / "module.ckpt")

    def program(*imports, body):
        return PROGRAM.format(imports="\n".join(imports), path=path, body=body)

    own, theirs = "import invertible_attention as ia", "import lightning"
    exec(program(own, theirs, body=SAVE), {"__name__": "saving"})
    for imports in [(own, theirs), (theirs, own)]:
        command = [sys.executable, "-c", program(*imports, body=LOAD)]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        expected = f"{ia.Certified(0.8)} {ia.FixedPoint()} {ia.Exact()} DotProduct"
        assert finished.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize("package", ["attention", "solvers", "logdet", "interop.distributions"])
def test_submodule_may_be_imported_before_torch(package):
    program = f"import invertible_attention.{package}, invertible_attention as ia; print(ia.Certified(0.8))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == repr(ia.Certified(0.8))

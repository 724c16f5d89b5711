"""Adapted objects can be copied, stored, and sent to another process."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
from functools import partial

import pytest
import torch
from torch import distributions as dist

import invertible_attention as ia
from invertible_attention import interop

from .conftest import attention


def _library(name):
    return pytest.importorskip(name, reason=f"needs {name}: pip install 'invertible-attention[interop]'")


def _density(transform, standard=dist.Normal):
    base = dist.Independent(standard(torch.zeros(2), torch.ones(2)), 1)
    return dist.TransformedDistribution(base, [transform.inv])


def distributions(layer):
    return _density(interop.to_distribution(layer, view=(1, 2))).log_prob


def pyro(layer):
    _library("pyro")
    return _density(interop.to_pyro(layer, view=(1, 2))).log_prob


def zuko(layer):
    lazy, base = _library("zuko").lazy, _library("zuko").flows.MAF(2, transforms=1)
    return partial(_lazy_log_prob, lazy.Flow([interop.to_zuko(layer, view=(1, 2))], base.base))


def _lazy_log_prob(flow, x):
    return flow().log_prob(x)


def nflows(layer):
    _library("nflows")
    flows, bases = importlib.import_module("nflows.flows"), importlib.import_module("nflows.distributions")
    return flows.Flow(interop.to_nflows(layer, view=(1, 2)), bases.StandardNormal([2])).log_prob


def normflows(layer):
    library = _library("normflows")
    base = library.distributions.DiagGaussian(2)
    return library.NormalizingFlow(base, [interop.to_normflows(layer, view=(1, 2))]).log_prob


def freia(layer):
    _library("FrEIA")
    return partial(_freia_logdet, interop.to_freia(layer, (2,), view=(1, 2)))


def _freia_logdet(module, x):
    return module((x,))[1]


def theirs_here(layer):
    """A chain of layers of every library."""
    nf, zk = _library("normflows"), _library("zuko")
    blocks, nt = importlib.import_module("FrEIA.modules"), importlib.import_module("nflows.transforms")
    _library("pyro")
    pt = importlib.import_module("pyro.distributions.transforms")
    parts = [
        interop.from_normflows(nf.flows.AffineConstFlow(2)),
        interop.from_nflows(nt.ReversePermutation(2)),
        interop.from_zuko(zk.flows.NSF(2, transforms=1).transform),
        interop.from_freia(blocks.PermuteRandom([(2,)])),
        interop.from_distribution(pt.affine_coupling(2)),
        interop.from_distribution(dist.ComposeTransform([dist.TanhTransform(), dist.TanhTransform().inv])),
        interop.from_distribution(pt.affine_coupling(2).inv),
        interop.FlattenedBijection(layer, (1, 2)),
    ]
    return ia.flows.Flow(ia.flows.Sequential(*parts), ia.flows.DiagonalGaussian(2)).log_prob


ADAPTERS = [distributions, pyro, zuko, nflows, normflows, freia, theirs_here]


def store(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


@pytest.mark.parametrize("make", ADAPTERS)
def test_copies_are_equal_and_independent(make):
    log_prob = make(attention())
    x = torch.randn(5, 2)
    log_prob(x).sum().backward()  # part of a graph
    expected = log_prob(x)
    for duplicate in (copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value)), store):
        torch.testing.assert_close(duplicate(log_prob)(x), expected)
    torch.testing.assert_close(log_prob(x), expected)


def _evaluate(pickled):
    log_prob, x = pickle.loads(pickled)
    return log_prob(x).detach().numpy()


@pytest.mark.slow
def test_pickled_modules_compute_the_same_in_another_process():
    x = torch.randn(5, 2)
    densities = [make(attention()) for make in ADAPTERS]
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(_evaluate, [pickle.dumps((log_prob, x)) for log_prob in densities])
    for log_prob, values in zip(densities, found, strict=True):
        torch.testing.assert_close(log_prob(x).detach(), torch.from_numpy(values))

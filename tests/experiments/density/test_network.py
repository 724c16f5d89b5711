from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from invertible_attention import Exact, InvertibleAttention, PowerSeries, RussianRoulette
from invertible_attention.experiments.density.baselines import NormflowsStep, ZukoBase, build_baseline
from invertible_attention.experiments.density.configuration import Configuration, Model
from invertible_attention.experiments.density.network import (
    build_model,
    count_parameters,
    make_estimator,
    using_estimator,
)
from invertible_attention.flows import Residual

SMALL: dict[str, Any] = {"blocks": (1, 1), "hidden_channels": 8}
pytestmark = pytest.mark.filterwarnings("ignore:torch.lu is deprecated")


def build(**given: Any) -> Any:
    return build_model(Configuration.choose(**(SMALL | given)), (1, 8, 8), 17)


def test_attention_changes_no_other_weight() -> None:
    plain = build(attention="none").state_dict()
    attentive = build().state_dict()
    assert set(attentive) > set(plain) or len(attentive) > len(plain)
    # attention after the first block shifts the names of later parts by one
    values = [value for name, value in attentive.items() if "value_weight" not in name]
    for value in plain.values():
        assert any(value.shape == other.shape and torch.equal(value, other) for other in values)
    assert count_parameters(build()) < 1.02 * count_parameters(build(attention="none"))


def test_weights_depend_only_on_the_seed() -> None:
    torch.manual_seed(3)
    one = build().state_dict()
    state = torch.get_rng_state()
    two, three = build().state_dict(), build(seed=1).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)
    assert torch.equal(state, torch.get_rng_state())


def test_settings_reach_the_attention() -> None:
    model = build(
        attention="gaussian",
        constraint="relaxed",
        heads=2,
        normalization="row",
        position_prior=True,
        attention_after=("0:0", "1:0"),
        attention_coefficient=0.7,
    )
    layers: list[Any] = [module for module in model.modules() if isinstance(module, InvertibleAttention)]
    assert [layer.branch.channels for layer in layers] == [4, 8]
    for layer in layers:
        assert (layer.branch.heads, layer.branch.normalization) == (2, "row")
        assert layer.branch.constraint.coefficient == 0.7
        assert type(layer.branch.constraint).__name__ == "Relaxed"
        assert layer.branch.position_prior is not None


def test_estimators_of_the_settings() -> None:
    assert make_estimator("exact") == Exact()
    assert make_estimator("power-series", terms=5) == PowerSeries(terms=5, control_variate=False)
    assert make_estimator("roulette", terms=3, probes=2) == RussianRoulette(exact_terms=3, probes=2)
    model = build(estimator="power-series", terms=5)
    blocks = [module for module in model.modules() if isinstance(module, Residual)]
    assert len(blocks) == 3
    with using_estimator(model, Exact()):
        assert all(block.logdet == Exact() for block in blocks)
    assert all(block.logdet == PowerSeries(terms=5, control_variate=False) for block in blocks)


@pytest.mark.parametrize("model", ["realnvp", "glow"])
def test_multiscale_baselines_have_the_right_determinant(model: str) -> None:
    torch.manual_seed(0)
    flow: Any = build_baseline(
        Configuration.choose(model=model, blocks=(4, 2), hidden_channels=4), (1, 4, 4), 17
    )
    flow = flow.double()
    flow.initialize(torch.randint(0, 17, (64, 1, 4, 4)).double())
    for parameter in flow.parameters():  # away from the initial identity
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    _, *parts = flow.transform
    for module in flow.modules():
        assert not isinstance(module, NormflowsStep) or module.step is not None
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    z, total = x, torch.zeros(2, dtype=torch.float64)
    for part in parts:
        z, logdet = part.forward_and_logdet(z)
        total = total + logdet

    def latent(flat):
        y = flat.view(1, 1, 4, 4)
        for part in parts:
            y = part(y)
        return y.flatten()

    jacobian = torch.autograd.functional.jacobian(latent, x[0].flatten())
    torch.testing.assert_close(total[0], torch.linalg.slogdet(jacobian).logabsdet)
    back, inverse_total = z, torch.zeros(2, dtype=torch.float64)
    for part in reversed(parts):
        back, logdet = part.inverse_and_logdet(back)
        inverse_total = inverse_total + logdet
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_total, -total)


@pytest.mark.parametrize("model", ["made", "maf", "cnf"])
def test_vector_baselines_have_normalized_densities(model: str) -> None:
    torch.manual_seed(0)
    flow: Any = build_baseline(Configuration.choose(model=model, hidden_channels=8), (1, 1, 2), 17)
    assert isinstance(flow.base, ZukoBase)
    axis = torch.linspace(-9, 9, 121)
    grid = torch.cartesian_prod(axis, axis)
    if model == "cnf":
        flow.base.flow.transform.exact = True
    with torch.no_grad():
        mass = flow.base.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=0.01)
    assert flow.base.sample(3).shape == (3, 2)
    with pytest.raises(ValueError, match=r"temperature 1, got 0\.5"):
        flow.base.sample(3, temperature=0.5)
    with pytest.raises(ValueError, match=r"zuko flows take no mask, got one of shape \(121, 2\)"):
        flow.base.log_prob(grid[:121], mask=torch.ones(121, 2, dtype=torch.bool))


@pytest.mark.parametrize("model", get_args(Model))
def test_every_model_trains_and_samples(model: str) -> None:
    torch.manual_seed(0)
    flow: Any = build_model(Configuration.choose(model=model, **SMALL), (1, 8, 8), 17)
    images = torch.randint(0, 17, (16, 1, 8, 8), dtype=torch.uint8)
    flow.initialize(images)
    bits = flow.bits_per_dim(images)
    bits.mean().backward()
    assert bits.shape == (16,)
    missing = [name for name, p in flow.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    samples = flow.eval().sample(2)
    assert samples.shape == (2, 1, 8, 8)
    assert 0 <= samples.min() <= samples.max() <= 16


def test_triangular_layers_alternate_the_token_order() -> None:
    model = build(
        attention="dot_product",
        constraint="triangular",
        affine=True,
        width=8,
        heads=2,
        attention_after=("0:0", "1:0"),
    )
    layers: list[Any] = [module for module in model.modules() if isinstance(module, InvertibleAttention)]
    assert [layer.branch.order for layer in layers] == ["raster", "reverse"]
    for layer in layers:
        assert layer.branch.affine
        assert layer.branch.module.width == 8


def test_transformer_flow_has_an_exact_density_of_images() -> None:
    model = build(model="transformer-flow", hidden_channels=16, heads=2, depth=1)
    images = torch.randint(0, 17, (8, 1, 8, 8), dtype=torch.uint8)
    model.initialize(images)
    torch.manual_seed(0)
    one = model.bits_per_dim(images)
    torch.manual_seed(0)
    assert torch.equal(one, model.bits_per_dim(images))
    samples = model.sample(4)
    assert samples.shape == (4, 1, 8, 8)

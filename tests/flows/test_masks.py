"""Padded samples equal unpadded ones in every part of a flow and in the density."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import invertible_attention as ia
from invertible_attention import flows

from .test_bijections import CASES


def attention(channels: int = 2, **arguments) -> ia.InvertibleAttention:
    return ia.InvertibleAttention(channels, "embedded_gaussian", logdet=ia.Exact(), **arguments)


def conv(channels: int, *spatial: int) -> ia.Residual:
    return ia.Residual(flows.LipschitzConvBranch(channels, 4, spatial), logdet=ia.Exact())


def shaken(module: nn.Module) -> nn.Module:
    """Weights far from initialization, so that no comparison holds because both are zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def prefix_mask(lengths: list[int], size: int) -> torch.Tensor:
    return torch.arange(size) < torch.tensor(lengths)[:, None]


def block_mask(sizes: list[tuple[int, ...]], spatial: tuple[int, ...]) -> torch.Tensor:
    """Images of unequal size in the first corner of a larger one."""
    mask = torch.zeros(len(sizes), *spatial, dtype=torch.bool)
    for i, size in enumerate(sizes):
        mask[(i, *(slice(s) for s in size))] = True
    return mask


@pytest.fixture
def sequence() -> tuple[flows.Sequential, torch.Tensor, torch.Tensor]:
    """A chain of everything elementwise, local and global, samples of unequal length with NaN beyond, a mask."""
    chain = flows.Sequential(
        flows.Logit(0.05),
        flows.ActNorm(2),
        attention(heads=2, bias=True),
        conv(2, 6),
        attention(causal=True, normalization="row"),
        flows.ActNorm(2),
    ).double()
    mask = prefix_mask([6, 2, 4], 6)
    x = torch.rand(3, 2, 6, dtype=torch.float64)
    chain(x, mask=mask)
    return shaken(chain), x.masked_fill(~mask[:, None], torch.nan), mask


def test_padded_batch_equals_single_samples(sequence):
    chain, x, mask = sequence
    z, logdet = chain.forward_and_logdet(x, mask=mask)
    torch.testing.assert_close(chain(x, mask=mask), z, equal_nan=True)
    back, inverse_logdet = chain.inverse_and_logdet(z, mask=mask)
    for i, length in enumerate(mask.sum(1).tolist()):
        sample = x[i : i + 1, :, :length]
        alone, alone_logdet = chain.forward_and_logdet(sample)
        torch.testing.assert_close(z[i : i + 1, :, :length], alone)
        torch.testing.assert_close(logdet[i : i + 1], alone_logdet)
        torch.testing.assert_close(back[i : i + 1, :, :length], sample, atol=1e-9, rtol=0)
        jacobian = torch.autograd.functional.jacobian(lambda s: chain(s).flatten(), sample).reshape(
            2 * length, -1
        )
        torch.testing.assert_close(logdet[i], torch.linalg.slogdet(jacobian).logabsdet)
    torch.testing.assert_close(inverse_logdet, -logdet, atol=1e-8, rtol=0)
    assert z.isnan().equal(x.isnan())
    assert back.isnan().equal(x.isnan())


def test_gradients_match_unpadded_samples(sequence):
    chain, x, mask = sequence
    z, logdet = chain.forward_and_logdet(x, mask=mask)
    (z.masked_fill(~mask[:, None], 0.0).square().sum() + logdet.sum()).backward()
    found = {name: parameter.grad.clone() for name, parameter in chain.named_parameters()}
    chain.zero_grad()
    for i, length in enumerate(mask.sum(1).tolist()):
        z, logdet = chain.forward_and_logdet(x[i : i + 1, :, :length])
        (z.square().sum() + logdet.sum()).backward()
    for name, parameter in chain.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


MASKS = {
    "squeeze-1d": prefix_mask([6, 3, 0], 6),
    "squeeze-2d": block_mask([(4, 2), (2, 2), (0, 0)], (4, 2)),
    "squeeze-3d": block_mask([(2, 4, 2), (2, 2, 2), (0, 0, 0)], (2, 4, 2)),
    "flatten": prefix_mask([3, 1, 2], 3),
    "split": block_mask([(2, 2), (1, 2), (1, 1)], (2, 2)),
    "actnorm-vector": prefix_mask([5, 2, 1], 5),
    "actnorm-image": block_mask([(2, 2), (1, 2), (0, 0)], (2, 2)),
    "logit": prefix_mask([3, 1, 2], 3),
    "sequential": block_mask([(2, 2), (0, 0), (2, 2)], (2, 2)),
    "conv-1d": prefix_mask([6, 3, 1], 6),
    "conv-2d-elu": block_mask([(3, 4), (2, 3), (1, 1)], (3, 4)),
    "conv-2d-lipswish": block_mask([(3, 4), (2, 3), (1, 1)], (3, 4)),
    "conv-3d": block_mask([(2, 3, 2), (2, 2, 1), (1, 1, 1)], (2, 3, 2)),
    "attention-gaussian": block_mask([(2, 3), (1, 2), (2, 1)], (2, 3)),
    "attention-embedded": block_mask([(2, 3), (1, 2), (2, 1)], (2, 3)),
    "attention-dot": prefix_mask([6, 3, 1], 6),
    "attention-concatenation": block_mask([(2, 3), (1, 2), (2, 1)], (2, 3)),
    "attention-triangular": block_mask([(2, 3), (1, 2), (2, 1)], (2, 3)),
    "attention-triangular-affine": prefix_mask([6, 3, 1], 6),
    "i-resnet": block_mask([(4, 4), (4, 4), (0, 0)], (4, 4)),
}


def test_every_bijection_that_takes_a_mask_is_tested():
    assert set(MASKS) == {name for name, case in CASES.items() if case.make().uses_mask}


@pytest.mark.parametrize("name", MASKS)
def test_masked_bijection_laws(name):
    """Padding passes unchanged, has no effect, and counts as the identity in the log-determinant."""
    make, shape = CASES[name]
    mask = MASKS[name]
    bijection = make().double()
    bijection(torch.rand(16, *shape, dtype=torch.float64))
    shaken(bijection)
    x = torch.rand(3, *shape, dtype=torch.float64)
    valid = (mask if len(shape) == 1 else mask[:, None]).expand_as(x)
    z, logdet = bijection.forward_and_logdet(x, mask=mask)
    out = bijection.output_mask(mask)
    out = (out if z.ndim == 2 else out[:, None]).expand_as(z)
    assert out.sum() == valid.sum()
    torch.testing.assert_close(z[~out].sort()[0], x[~valid].sort()[0], rtol=0, atol=0)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda s, m=mask[i : i + 1]: bijection(s, mask=m).flatten(), x[i : i + 1]
        )
        torch.testing.assert_close(logdet[i], torch.linalg.slogdet(jacobian.flatten(1)).logabsdet)
    back, inverse_logdet = bijection.inverse_and_logdet(z, mask=mask)
    torch.testing.assert_close(back, x, atol=1e-9, rtol=0)
    torch.testing.assert_close(bijection.inverse(z, mask=mask), back)
    torch.testing.assert_close(inverse_logdet, -logdet, atol=1e-8, rtol=0)
    other, other_logdet = bijection.forward_and_logdet(x.masked_fill(~valid, torch.nan), mask=mask)
    torch.testing.assert_close(other[out], z[out])
    torch.testing.assert_close(other_logdet, logdet)
    full, full_logdet = bijection.forward_and_logdet(x, mask=torch.ones_like(mask))
    torch.testing.assert_close((full, full_logdet), bijection.forward_and_logdet(x))


def test_large_padding_does_not_loosen_the_inverse():
    layer = attention(4, solver=ia.Anderson(tolerance=1e-10)).double()
    mask = prefix_mask([2, 5], 6)
    x = torch.randn(2, 4, 6, dtype=torch.float64).masked_fill(~mask[:, None], 1e9)
    z = layer(x, mask=mask)
    solution = layer.solve_inverse(z, mask=mask)
    assert ((solution.value - x)[mask[:, None].expand_as(x)]).abs().max() < 1e-9
    for i, length in enumerate((2, 5)):
        alone = layer.solve_inverse(z[i : i + 1, :, :length])
        assert solution.iterations[i] == alone.iterations[0]
        torch.testing.assert_close(solution.error_bound[i], alone.error_bound[0], rtol=1e-3, atol=0)


@settings(deadline=None, max_examples=25)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    activation=st.sampled_from(["elu", "lipswish"]),
    growth=st.floats(1.0, 50.0),
    seed=st.integers(0, 2**16),
)
def test_masked_convolution_equals_the_smaller_image_and_stays_below_its_bound(
    size, activation, growth, seed
):
    torch.manual_seed(seed)
    branch = flows.LipschitzConvBranch(2, 3, (5, 4), activation=activation).double()
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.mul_(growth)
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    mask = block_mask([size], (5, 4))
    height, width = size
    found = branch(x, None, mask)
    torch.testing.assert_close(found[..., :height, :width], branch(x[..., :height, :width]))
    assert (found[~mask[:, None].expand_as(x)] == 0).all()
    scattered = torch.rand(1, 5, 4) < 0.6
    jacobian = torch.autograd.functional.jacobian(lambda s: branch(s, None, scattered).flatten(), x).flatten(
        1
    )
    assert torch.linalg.matrix_norm(jacobian, ord=2) <= branch.lipschitz_bound()


def resnet(shape: tuple[int, ...], **arguments) -> flows.InvertibleResNet:
    make = partial(ia.InvertibleAttention, logdet=ia.Exact())
    return flows.InvertibleResNet(
        shape, hidden_channels=4, blocks=(1, 1), attention=make, logdet=ia.Exact(), **arguments
    ).double()


def test_density_of_images_of_unequal_size():
    torch.manual_seed(0)
    net = resnet((1, 8, 8))
    flow = flows.Flow(flows.Sequential(flows.Dequantize(17), net), flows.DiagonalGaussian(64)).double()
    x = torch.randint(0, 17, (3, 1, 8, 8)).double()
    mask = block_mask([(8, 8), (4, 4), (8, 4)], (8, 8))
    flow.initialize(x, mask=mask)
    shaken(flow)
    noise = torch.rand_like(x)
    z, logdet = net.forward_and_logdet(noise, mask=mask)
    values = net.output_mask(mask)
    expected = torch.distributions.Normal(flow.base.mean, flow.base.log_std.exp()).log_prob(z)
    density = flows.Flow(net, flow.base).log_prob(noise, mask=mask)
    torch.testing.assert_close(density, expected.masked_fill(~values, 0).sum(1) + logdet)

    torch.manual_seed(1)
    bits = flow.bits_per_dim(x, mask=mask)
    torch.manual_seed(1)
    nats = flow(x, mask=mask)
    torch.testing.assert_close(
        bits, -nats / (math.log(2) * torch.tensor([64.0, 16, 32], dtype=torch.float64))
    )
    torch.manual_seed(1)
    other = flow.bits_per_dim(x.masked_fill(~mask[:, None], torch.nan), mask=mask)
    torch.testing.assert_close(other, bits)

    samples = flow.sample(3, mask=mask, temperature=0.5)
    assert (samples[~mask[:, None]] == 0).all()
    assert torch.equal(samples, samples.round().clamp(0, 16))


def test_blocks_of_a_small_image_match_a_network_of_that_size():
    """If no weight is at its limit, which depends on the image size, the two networks agree."""
    torch.manual_seed(0)
    large, small = resnet((1, 8, 8), factor_out=False), resnet((1, 4, 4), factor_out=False)
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            parameter.mul_(0.3 if "original" in name else 1.0)
    mask = block_mask([(4, 4)], (8, 8))
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    large(x, mask=mask)
    small.load_state_dict(large.state_dict())
    z, logdet = large.forward_and_logdet(x, mask=mask)
    alone, alone_logdet = small.forward_and_logdet(x[..., :4, :4])
    torch.testing.assert_close(logdet, alone_logdet)
    torch.testing.assert_close(z[large.output_mask(mask)], alone[0])


def test_actnorm_is_initialized_from_valid_values():
    x, mask = torch.randn(5, 3, 4, dtype=torch.float64), prefix_mask([4, 1, 2, 3, 0], 4)
    masked, alone = flows.ActNorm(3).double(), flows.ActNorm(3).double()
    masked(x.masked_fill(~mask[:, None], torch.inf), mask=mask)
    alone(x.mT[mask])
    torch.testing.assert_close(masked.state_dict(), alone.state_dict())
    never = flows.ActNorm(3).double()
    never(x[:, :, 0], mask=torch.tensor([True, False, True]).expand(5, 3))
    assert never.log_scale[1] == never.shift[1] == 0


def test_uniform_base_counts_valid_values():
    base = flows.Uniform(3, 0.0, 2.0)
    mask = prefix_mask([2, 3, 0], 3)
    found = base.log_prob(torch.tensor([[1.0, 1, 9], [1, 1, 9], [9, 9, 9]]), mask=mask)
    assert found.tolist() == [pytest.approx(-2 * math.log(2)), -math.inf, 0.0]


def test_mask_is_refused_where_unsupported():
    mask = prefix_mask([4, 2], 4)
    linear = ia.Residual(flows.LipschitzLinearBranch(8))
    chain = flows.Sequential(flows.ActNorm(2), linear)
    x = torch.zeros(2, 2, 4)
    assert not chain.uses_mask
    for call in (chain, chain.inverse, chain.forward_and_logdet, chain.inverse_and_logdet, linear):
        with pytest.raises(ValueError, match=r"takes no mask.*\(2, 4\)"):
            call(x, mask=mask)
    net = resnet((1, 4, 4), linear_blocks=1)
    with pytest.raises(ValueError, match="takes no mask"):
        net(torch.rand(1, 1, 4, 4, dtype=torch.float64), mask=torch.ones(1, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("bijection", "mask", "shown"),
    [
        (lambda: flows.Squeeze(2), prefix_mask([3], 4), "cuts through"),
        (lambda: flows.ActNorm(2), torch.ones(1, 4), "float32"),
        (lambda: flows.ActNorm(2), torch.ones(1, 3, dtype=torch.bool), r"\(1, 3\)"),
        (lambda: flows.Flatten((2, 4)), torch.ones(1, 3, dtype=torch.bool), r"\(1, 3\)"),
    ],
)
def test_bad_mask_error_shows_the_value(bijection, mask, shown):
    with pytest.raises(ValueError, match=shown):
        flows.Sequential(bijection(), flows.Flatten((2, 4)))(torch.zeros(1, 2, 4), mask=mask)

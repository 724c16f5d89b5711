from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from invertible_attention.experiments import training
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.reconstruct.batches import EpochBatches, fixed_target
from invertible_attention.experiments.reconstruct.configuration import Configuration
from invertible_attention.experiments.reconstruct.training import train
from invertible_attention.experiments.training import choose_device

IMAGES = torch.randint(0, 256, (40, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SETTINGS = Configuration(size=(12, 12), epochs=5, batch_size=8, train_images=40)


class Stop(Exception):
    pass


class Network(nn.Module):
    """A trainable network with the shapes of the real one that can fail during training."""

    def __init__(self, stop: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 12, 1))
        self.stop = stop
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.stop is not None and self.calls > self.stop:
            raise Stop
        return self.layers(x)


def run(
    folder: Path, network: Network, configuration: Configuration = SETTINGS, micro_batch: int = 8
) -> list[float]:
    return train(
        network,
        IMAGES,
        configuration,
        seed=3,
        micro_batch=micro_batch,
        device=torch.device("cpu"),
        folder=folder,
    )[0]


def weights(network: Network) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.layers.parameters()])


def test_matches_adam_on_the_mean_squared_error(tmp_path: Path) -> None:
    network, expected = Network(), Network()
    losses = run(tmp_path, network)
    target = fixed_target(8, (12, 12), seed=3)
    optimizer = torch.optim.Adam(expected.parameters(), lr=0.003)
    for epoch in range(5):
        for batch in EpochBatches(IMAGES, batch_size=8, seed=3, epoch=epoch):
            optimizer.zero_grad()
            loss = (expected(batch) - target).square().mean()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(weights(network), weights(expected))
    assert len(losses) == 25
    assert losses[-1] == pytest.approx(loss.item())
    assert losses[-1] < losses[0]
    assert not network.training


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_microbatch_gradients_add_up(tmp_path: Path, micro_batch: int) -> None:
    whole, parts = Network(), Network()
    losses = run(tmp_path / "whole", whole)
    split = run(tmp_path / "parts", parts, micro_batch=micro_batch)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-6)
    assert split == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("stop", [1, 5, 7, 23])
def test_resumed_run_matches_an_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    expected = Network()
    losses = run(tmp_path / "whole", expected)
    with pytest.raises(Stop):
        run(tmp_path / "resumed", Network(stop))
    assert [path.name for path in (tmp_path / "resumed").iterdir()] == ["training.ckpt"]
    resumed = Network()
    assert run(tmp_path / "resumed", resumed) == losses
    assert resumed.calls == 25 - stop
    assert torch.equal(weights(resumed), weights(expected))


@settings(deadline=None, max_examples=6)
@example(stops=[5, 3]).via("the last batch of an epoch, then the middle of the next")
@given(stops=st.lists(st.integers(1, 8), min_size=2, max_size=5))
def test_repeatedly_resumed_run_matches_an_uninterrupted_one(stops: list[int]) -> None:
    expected = Network()
    with tempfile.TemporaryDirectory() as folder:
        losses = run(Path(folder) / "whole", expected)
        for stop in stops:
            with contextlib.suppress(Stop):
                run(Path(folder) / "resumed", Network(stop))
        resumed = Network()
        assert run(Path(folder) / "resumed", resumed) == losses
    assert torch.equal(weights(resumed), weights(expected))


def test_finished_run_is_not_retrained(tmp_path: Path) -> None:
    first, second = Network(), Network()
    losses = run(tmp_path, first)
    assert run(tmp_path, second) == losses
    assert second.calls == 0
    assert torch.equal(weights(first), weights(second))


def test_truncated_checkpoint_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, Network(3))
    checkpoint = tmp_path / "training.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ExperimentError, match=r"training\.ckpt is damaged or not a checkpoint"):
        run(tmp_path, Network())


def test_checkpoint_with_code_is_refused(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"state_dict": Malicious()}, tmp_path / "training.ckpt")
    with pytest.raises(ExperimentError, match="not a checkpoint"):
        run(tmp_path, Network())
    assert not (tmp_path / "owned").exists()


def test_keyboard_interrupt_propagates(tmp_path: Path) -> None:
    import signal

    class Interrupted(Network):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted())
    assert signal.getsignal(signal.SIGINT) is before


def test_unknown_device_is_refused() -> None:
    with pytest.raises(ExperimentError, match="there is no device 'warp:3' here"):
        choose_device("warp:3")
    assert choose_device("cpu") == torch.device("cpu")


def test_training_time_counts_each_step_once_across_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now))

    class Slow(Network):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal now
            now += 1
            return super().forward(x)

    def seconds(network: Network) -> float:
        return train(
            network,
            IMAGES,
            SETTINGS,
            seed=3,
            micro_batch=8,
            device=torch.device("cpu"),
            folder=tmp_path,
        )[1]

    with pytest.raises(Stop):
        seconds(Slow(12))
    now += 1000  # between the attempts
    assert seconds(Slow()) == 25

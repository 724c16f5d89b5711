"""Random input to the library and the command line gives a right answer or a documented error."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import invertible_attention as ia
from invertible_attention.cli import main
from invertible_attention.cli.commands import COMMANDS
from invertible_attention.experiments.audit.checkpoints import open_checkpoint
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.files import read_json, read_tensors

fuzz = settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
few = settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))


def documented(error: Exception, shown: str = "") -> None:
    """Check that an error has a message."""
    assert str(error)
    assert shown in str(error)


# Constructors

numbers = st.sampled_from([-1, 0, 1, 2, 3, 4, 6, 7, 100]) | st.floats(-2, 2) | st.just(math.nan)
counts = st.sampled_from([-1, 0, 1, 2, 3, 4, 6, 8])
names = st.sampled_from(
    [
        "gaussian",
        "embedded_gaussian",
        "dot_product",
        "concatenation",
        "column",
        "row",
        "all",
        "count",
        "",
        "x",
    ]
)


@st.composite
def constraints(draw: Any) -> ia.Certified | ia.Relaxed | None:
    """Draw a constraint, or ``None``; raises ValueError itself for numbers out of range."""
    kind = draw(st.sampled_from(["certified", "relaxed", "none"]))
    if kind == "none":
        return None
    if kind == "certified":
        return ia.Certified(draw(st.floats(0.01, 0.99)), draw(st.none() | st.floats(0.1, 10)))
    return ia.Relaxed(draw(st.floats(0.01, 0.99)), draw(st.floats(0.1, 1)), draw(st.booleans()))


@fuzz
@given(
    channels=counts,
    response=names,
    normalization=names,
    heads=counts,
    embedding=st.none() | counts,
    bias=st.booleans(),
    causal=st.booleans(),
    context=st.none() | counts,
    kind=st.sampled_from(["vector", "tokens", "x"]),
    constraint=constraints(),
    tokens=st.integers(1, 5),
)
def test_layer_works_or_is_refused(
    channels, response, normalization, heads, embedding, bias, causal, context, kind, constraint, tokens
):
    try:
        layer = ia.InvertibleAttention(
            channels,
            response,
            constraint=constraint,
            normalization=normalization,
            embedding_channels=embedding,
            heads=heads,
            bias=bias,
            causal=causal,
            context_channels=context,
            context_kind=kind,
        ).double()
    except ValueError as error:
        documented(error)
        return
    x = torch.randn(2, channels, tokens, dtype=torch.float64)
    given_context = None
    if context is not None:
        given_context = torch.randn(2, context, *((3,) if kind == "tokens" else ()), dtype=torch.float64)
    z = layer(x, context=given_context)
    assert z.shape == x.shape
    solution = layer.solve_inverse(z, context=given_context)
    residual = (layer(solution.value, context=given_context) - z).flatten(1).norm(dim=1) / (
        1 + z.flatten(1).norm(dim=1)
    )
    assert (residual[solution.converged] <= 1.01e-12).all()
    if isinstance(constraint, ia.Certified) or constraint is None:
        assert solution.converged.all()
        torch.testing.assert_close(solution.value, x, rtol=1e-6, atol=1e-8)


@fuzz
@given(coefficient=numbers, radius=st.none() | numbers, column_sum=numbers)
def test_constraints_are_valid_or_refused(coefficient, radius, column_sum):
    for make, valid in (
        (lambda: ia.Certified(coefficient, radius), radius is None or (radius > 0 and math.isfinite(radius))),
        (lambda: ia.Relaxed(coefficient, column_sum), 0 < column_sum <= 1),
    ):
        if 0 < coefficient < 1 and valid:
            make()
        else:
            with pytest.raises(ValueError, match="got"):
                make()


anything = numbers | st.booleans() | st.none() | st.sampled_from(["5", [1], math.inf])


@fuzz
@given(evaluations=anything, tolerance=anything, memory=anything, regularization=anything)
def test_solvers_are_valid_or_refused(evaluations, tolerance, memory, regularization):
    try:
        solver = ia.Anderson(evaluations, tolerance, memory=memory, regularization=regularization)
    except ValueError as error:
        documented(error, "got")
        return
    z = torch.randn(2, 3, dtype=torch.float64)
    solution = solver.solve(lambda x: x.sin() / 2, z, lipschitz=0.5)
    residual = (solution.value + solution.value.sin() / 2 - z).norm(dim=1) / (1 + z.norm(dim=1))
    assert (residual[solution.converged] <= (solver.tolerance or 1e-12) * (1 + 1e-3) + 1e-15).all()
    assert solver.max_evaluations is None or (solution.evaluations <= solver.max_evaluations).all()


# Inputs

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
)


@st.composite
def tensors(draw: Any) -> Tensor:
    """Draw a tensor of any rank, size, dtype, memory layout and content."""
    shape = draw(st.lists(st.integers(0, 4), max_size=6))
    dtype = draw(st.sampled_from(DTYPES))
    x = 3 * torch.randn(shape, dtype=torch.float64)
    special = draw(st.sampled_from([None, None, None, math.nan, math.inf, 0.0, 1e30, 1e-30]))
    if special is not None and x.numel():
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = special
    layout = draw(st.sampled_from(["plain", "transposed", "strided", "expanded", "negative"]))
    if layout == "transposed" and x.ndim >= 2:
        x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    elif layout == "strided" and x.ndim >= 1:
        x = torch.stack([x, x], -1)[..., 0]
    elif layout == "expanded" and x.ndim >= 1 and x.shape[0] > 0:
        x = x[:1].expand(x.shape)
    elif layout == "negative" and x.ndim >= 1:
        x = x.flip(0)
    return x.to(dtype)


LAYERS = {
    "attention": lambda: ia.InvertibleAttention(4, "gaussian"),
    "concatenation": lambda: ia.InvertibleAttention(4, heads=2, normalization="all"),
    "convolution": lambda: ia.Residual(ia.flows.LipschitzConvBranch(4, 3, (4,))),
    "linear": lambda: ia.Residual(ia.flows.LipschitzLinearBranch(16, 3)),
    "actnorm": lambda: ia.flows.ActNorm(4),
    "squeeze": lambda: ia.flows.Squeeze(2),
    "logit": lambda: ia.flows.Logit(),
}


@fuzz
@given(layer=st.sampled_from(sorted(LAYERS)), x=tensors())
def test_any_tensor_is_transformed_or_refused(layer, x):
    """The errors are those of the contract, and of torch where an operation does not know a dtype."""
    module = LAYERS[layer]()
    try:
        z = module(x)
    except ValueError as error:
        documented(error)
        return
    except RuntimeError as error:
        # Parameters in float32 against another precision or shape: torch's own error, of torch's own layers.
        documented(error, "" if layer in ("convolution", "linear") else "not one of these layers")
        return
    if not x.is_floating_point():
        assert layer in ("squeeze", "logit", "actnorm")
    if x.numel() == 0 or x.ndim == 0:
        assert layer in ("squeeze", "logit", "actnorm")
        return
    assert z.shape[0] == x.shape[0]
    finite = x.isfinite().reshape(len(x), -1).all(1)
    if layer == "logit" or x.dtype not in (torch.float32, torch.float64):
        return
    assert z.reshape(len(z), -1).isfinite().all(1)[finite].all()
    if layer in ("attention", "concatenation"):
        solution = module.solve_inverse(z)
        assert solution.converged[finite].all()
        assert not solution.converged[~finite].any()
        error = (solution.value - x).double().reshape(len(x), -1).norm(dim=1)
        assert (error <= solution.error_bound.double() + 1e-30)[finite].all()


@few
@given(x=tensors(), mask=tensors())
def test_any_mask_is_used_or_refused(x, mask):
    layer = ia.InvertibleAttention(4, "gaussian")
    try:
        z = layer(x, mask=mask)
    except ValueError as error:
        documented(error)
        return
    assert mask.dtype == torch.bool
    hidden = ~mask.reshape(len(x), 1, *x.shape[2:]).expand_as(x)
    assert torch.equal(z[hidden].nan_to_num(7.0), x[hidden].nan_to_num(7.0))


@few
@given(x=tensors(), search=st.sampled_from([None, True, False]))
def test_any_input_is_audited_or_refused(x, search):
    layer = ia.InvertibleAttention(4, "gaussian")
    try:
        report = ia.audit(layer, x, search=search, budget=10, steps=3)
    except ValueError as error:
        documented(error)
        return
    json.dumps(report.to_dict(), allow_nan=False)
    assert str(report)
    assert report.silently_wrong == []


# The command line

words = st.sampled_from(
    [
        "--help", "--output", "--seed", "--quick", "--resume", "--overwrite", "--device", "--data-dir", "--attack",
        "--epochs", "--steps", "--size", "--responses", "--dataset", "--model", "--samples", "--jobs", "-o", "--",
        "-1", "0", "1", "x", "", "é", "cpu", "nowhere", "/nowhere/at/all", "photos", "gaussian", "1e9", "--seed=-1",
        "train", "study", "table", "evaluate", "sample", "predict", "measure", "..", ".", "\x00", "a,b",
        "--checkpoint", "--data", "--images", "--predictions", "--masks", "--models", "--levels", "--threads",
        "--port", "--migrate", "none",
    ]
)  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs themselves are not fuzzed: arguments that are accepted end here."""
    from invertible_attention.experiments.audit import campaign, checkpoint_audit
    from invertible_attention.experiments.benchmark import run as benchmark
    from invertible_attention.experiments.camouflage import measure
    from invertible_attention.experiments.camouflage import run as camouflage
    from invertible_attention.experiments.demo import server
    from invertible_attention.experiments.density import run as density
    from invertible_attention.experiments.density import study
    from invertible_attention.experiments.reconstruct import run as reconstruct

    def measured(*arguments: Any, **options: Any) -> None:
        raise ExperimentError("nothing is measured here")

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(measure, "measure_apart", measured)  # its findings are shown, which needs some
    for module, name in (
        (campaign, "run_campaign"),
        (checkpoint_audit, "audit_checkpoint"),
        (benchmark, "run"),
        (camouflage, "run_one"),
        (camouflage, "run_study"),
        (server, "serve"),
        (density, "train_run"),
        (density, "evaluate_run"),
        (density, "sample_run"),
        (study, "run_study"),
        (reconstruct, "run"),
    ):
        monkeypatch.setattr(module, name, lambda *arguments, **options: {})


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    command=st.sampled_from([*(command.name for command in COMMANDS), "", "nonsense", "--version"]),
    arguments=st.lists(words, max_size=6),
)
def test_any_arguments_are_one_line_or_a_run(capsys: pytest.CaptureFixture[str], command, arguments):
    """Status 0, or 1 or 2 with one line on standard error; never a traceback."""
    status = main([command, *arguments] if command else arguments)
    captured = capsys.readouterr()
    assert status in (0, 1, 2)
    assert "Traceback" not in captured.err + captured.out
    if status and captured.err:
        assert captured.err.startswith("invertible-attention: error: ")
        assert captured.err.count("\n") == 1


# Files

contents = st.binary(max_size=64) | st.sampled_from(
    [
        b"{}",
        b"[]",
        b"null",
        b'{"seed": 0}',
        b"\xff\xfe{}",
        b"PK\x03\x04",
        b"\x08\0\0\0\0\0\0\0{}      ",
        b"1" * 5000,
    ]
)


@few
@given(content=contents)
def test_any_file_is_read_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        for read in (read_json, read_tensors):
            try:
                found = read(path)
            except ExperimentError as error:
                documented(error, str(path))
            else:
                # JSON, or a safetensors file of no tensors, which the header of the sample is.
                assert repr(found) == repr(json.loads(content.decode()) if read is read_json else {})


@few
@given(weights=contents, configuration=contents, images=st.none() | contents, result=contents)
def test_any_folder_is_audited_or_refused(weights, configuration, images, result):
    with tempfile.TemporaryDirectory() as folder:
        cell = Path(folder) / "cells" / "cell"
        cell.mkdir(parents=True)
        (cell / "model.safetensors").write_bytes(weights)
        for place in (cell, Path(folder)):
            (place / "configuration.json").write_bytes(configuration)
        (cell / "result.json").write_bytes(result)
        if images is not None:
            (cell / "images.safetensors").write_bytes(images)
        with pytest.raises(ExperimentError):
            open_checkpoint(Path(folder))

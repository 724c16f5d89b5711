"""Tables of the density experiment, and of conditional densities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results_tables.markdown import Table, grid, provenance, read

__all__ = ["TABLES"]


def study(path: Path) -> str:
    """Compare the variants of a study with its first."""
    from invertible_attention.experiments.density.comparison import table_text

    content = read(path)
    _, _, text = table_text(content).partition("\n\n")
    return f"**{content['data']['title']}.** {text}\n{provenance(content.get('run'))}"


def run(path: Path) -> str:
    """What one training did: bits per dimension before and after, and the samples that were inverted."""
    content = read(path)
    training, samples = content["training"], content["samples"]
    rows = [
        ["model", content["name"]],
        ["parameters", f"{content['parameters']:,}"],
        ["steps, images in each", f"{training['steps']:,}, {content['configuration']['batch_size']}"],
        ["training, minutes", f"{training['seconds'] / 60:.1f}"],
        ["untrained, bits per dimension", _bits(content["untrained"])],
        ["trained, bits per dimension", _bits(content["evaluation"])],
        ["samples whose inverse converged", f"{samples['converged']} of {samples['drawn']}"],
    ]
    about = f"{content['data']['title']}, {content['data']['test_images']} test images; ± standard error over images."
    return f"{grid(['quantity', 'value'], rows)}\n\n*{about}* {provenance(content['run'])}"


def _bits(score: dict[str, Any]) -> str:
    kind = "exact" if score["exact"] else "unbiased"
    return f"{score['bits_per_dim']:.4f} ± {score['sampling_error']:.4f}, {kind}"


def conditional(path: Path) -> str:
    """Compare a flow that is given the class with one that is not."""
    content = read(path)
    head = [
        "seed",
        "flow",
        "bits per dimension",
        "standard error",
        "largest reconstruction error",
        "parameters",
    ]
    rows = [
        [
            seed,
            name,
            f"{run[name]['bits_per_dim']:.4f}",
            f"{run[name]['standard_error']:.4f}",
            f"{run[name]['largest_reconstruction_error']:.1e}",
            f"{run[name]['parameters']:,}",
        ]
        for seed, run in content.get("seeds", {"0": content}).items()
        for name in ("unconditional", "conditional")
    ]
    if "seeds" in content:
        value, error, over = content["gain"], content["gain_standard_error_over_seeds"], "seeds"
    else:
        value, error, over = content["gain_bits_per_dim"], content["gain_standard_error"], "images"
    gain = f"{value:.4f}" + ("" if error is None else f" ± {error:.4f} (standard error over {over})")
    about = f"Paired gain {gain} bits per dimension. {content['data']}; {_lower(content['log_determinant'])}."
    return f"{grid(head, rows, text_columns=2)}\n\n*{about}* {provenance(content.get('metadata'))}"


def training_step(path: Path) -> str:
    """Memory and time of a training step in units of the first formulation's."""
    content = read(path)
    first, *_ = content["rows"]
    rows = [
        [
            row["formulation"],
            f"{row['mib']:.0f}",
            f"{row['mib'] / first['mib']:.2f}",
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / first['seconds']:.2f}",
        ]
        for row in content["rows"]
    ]
    head = ["formulation", "peak above start, MiB", "of the first", "processor time, s", "of the first"]
    about = f"{content['blocks']} blocks of {content['channels']} channels per scale, batches of {content['batch']}."
    return f"{grid(head, rows)}\n\n*{about}* {provenance(content['run'])}"


def _lower(text: Any) -> str:
    return f"log-determinant {text}"


TABLES = (
    Table(
        "density",
        "density",
        ("study.json", "*/study.json", "*/*/study.json"),
        "invertible-attention density study",
        study,
    ),
    Table(
        "density-run",
        "density",
        ("*/results.json",),
        "invertible-attention density train",
        run,
    ),
    Table(
        "training-step",
        "density",
        ("training-step.json",),
        "python benchmarks/density_training_step.py",
        training_step,
    ),
    Table(
        "conditional",
        "conditional",
        ("digits.json",),
        "python benchmarks/conditional_digits.py",
        conditional,
    ),
)

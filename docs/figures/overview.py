"""Draw the picture on the first page: ``python docs/figures/overview.py`` writes ``docs/images/overview.png``.

Nothing in it is drawn by hand: the layer is trained for a few steps, evaluated and inverted.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor

import invertible_attention as ia
from invertible_attention.attention.functional import response_matrix
from invertible_attention.attention.functional.form import Form
from invertible_attention.experiments.data.photographs import PHOTOGRAPHS, bundled_photograph
from invertible_attention.experiments.report.figures import COLORS, plot_style
from invertible_attention.lipschitz import local_lipschitz_estimate

OUTPUT = Path(__file__).parents[1] / "images" / "overview.png"
SIZE, TOKEN = 96, (16, 22)
BLUE, ORANGE, GREEN = COLORS[:3]


def photograph(path: str) -> Tensor:
    image = bundled_photograph(path)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float()[None] / 255 - 0.5


def train(layer: ia.InvertibleAttention, images: Tensor, steps: int = 60) -> None:
    """Pull the latents toward a fixed random image, as the paper trains."""
    target = torch.randn(images[:1].shape, generator=torch.Generator().manual_seed(3)) / 2
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(layer(images), target.expand_as(images)).backward()
        optimizer.step()


def attention_to(layer: ia.InvertibleAttention, x: Tensor, token: tuple[int, int]) -> Tensor:
    """Return from where a token gathers, as an image."""
    branch = layer.branch
    tokens = x.flatten(2).transpose(1, 2)
    norm = tokens.norm(dim=-1, keepdim=True)
    seen = tokens * (branch.radius / norm).clamp(max=1.0)
    query, key = branch.response(seen, seen)
    weights = response_matrix(query, key, Form(branch.response.combine, branch.response.phi, "column"))
    row = weights[0, 0, token[0] * x.shape[-1] + token[1]]
    return (row / row.mean()).view(x.shape[2:])


def show(axes: Axes, image: Tensor, title: str, **options: object) -> None:
    axes.imshow(image.numpy(), interpolation="nearest", **options)
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def rgb(squeezed: Tensor, squeeze: ia.flows.Squeeze, *, stretch: bool = False) -> Tensor:
    image = squeeze.inverse(squeezed)[0].permute(1, 2, 0)
    if stretch:
        low, high = image.quantile(0.01), image.quantile(0.99)
        return ((image - low) / (high - low)).clamp(0, 1)
    return (image + 0.5).clamp(0, 1)


def arrow(figure: plt.Figure, x: tuple[float, float], y: float, text: str, color: str) -> None:
    style = "Simple,tail_width=1.4,head_width=8,head_length=8"
    figure.patches.append(
        FancyArrowPatch((x[0], y), (x[1], y), transform=figure.transFigure, arrowstyle=style, color=color)
    )
    offset = 0.03 if x[0] < x[1] else -0.032
    figure.text(sum(x) / 2, y + offset, text, ha="center", va="center", fontsize=10, color=color)


def curves(axes: Axes, layer: ia.InvertibleAttention, z: Tensor, x: Tensor) -> None:
    """Draw the residual of the default solver and of the paper's iteration."""
    for solver, color, name in (
        (ia.Anderson(tolerance=1e-7), BLUE, "Anderson (default)"),
        (ia.FixedPoint(tolerance=1e-7), ORANGE, "fixed point (the paper)"),
    ):
        solution = solver.solve(layer.branch.bind(), z, lipschitz=layer.lipschitz_bound())
        residual = solution.trace[:, 0].numpy()
        axes.semilogy(range(1, len(residual) + 1), residual, color=color, label=name)
        axes.annotate(
            str(len(residual)),
            (len(residual), residual[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            color=color,
            fontsize=9,
        )
    axes.set_xlabel("evaluations of the branch")
    axes.set_ylabel("relative residual")
    axes.set_title("the inverse: solved, and checked", fontsize=10)
    axes.legend(fontsize=8)


def bars(axes: Axes, layer: ia.InvertibleAttention, images: dict[str, Tensor]) -> None:
    """Draw the measured local constants under the certified bound."""
    bound = layer.lipschitz_bound().item()
    values = [local_lipschitz_estimate(layer.branch, x).item() for x in images.values()]
    axes.bar(range(len(values)), values, color=GREEN, width=0.6)
    axes.axhline(bound, color="black", linewidth=1.2)
    axes.text(-0.45, bound - 0.01, f"certified for every input: {bound:.2f}", va="top", fontsize=9)
    axes.axhline(1, color=ORANGE, linewidth=1, linestyle="--")
    axes.text(-0.45, 1.02, "1: nothing is promised above", va="bottom", fontsize=9, color=ORANGE)
    axes.set_xticks(range(len(values)), images, fontsize=8)
    axes.set_ylim(0, 1.2)
    axes.set_title("the branch: measured stretch of seven photographs", fontsize=10)
    axes.grid(axis="x", visible=False)


def main() -> None:
    torch.manual_seed(0)
    squeeze = ia.flows.Squeeze(2)
    paths = [path for split in PHOTOGRAPHS.values() for path in split if "right" not in path]
    images = {Path(path).stem.replace("_left", ""): squeeze(photograph(path)) for path in paths}
    layer = ia.InvertibleAttention(12, "embedded_gaussian", embedding_channels=6)
    train(layer, torch.cat(list(images.values())))
    layer.eval()
    x = images["chelsea"]
    with torch.no_grad():
        z = layer(x)
        solution = layer.solve_inverse(z)
        attended = attention_to(layer, x, TOKEN)

    with plot_style():
        figure = plt.figure(figsize=(10, 5), layout="none")
        top = [figure.add_axes((left, 0.58, 0.18, 0.36)) for left in (0.03, 0.29, 0.55, 0.81)]
        show(top[0], rgb(x, squeeze), "input x")
        show(top[1], attended, "from where the mark gathers", cmap="magma")
        show(top[2], rgb(z, squeeze, stretch=True), "output z = x + g(x)")
        error = float((solution.value - x).norm())
        show(top[3], rgb(solution.value, squeeze), f"recovered, ‖error‖ = {error:.0e}")
        for axes, scale in ((top[0], 2), (top[1], 1)):
            row, column = TOKEN
            box = (column * scale - 0.5 * scale - 1, row * scale - 0.5 * scale - 1)
            axes.add_patch(
                Rectangle(box, 2 * scale + 1, 2 * scale + 1, fill=False, color="white", linewidth=1.6)
            )
        arrow(figure, (0.21, 0.28), 0.765, "attend", BLUE)
        arrow(figure, (0.47, 0.54), 0.765, "add", BLUE)
        arrow(figure, (0.73, 0.80), 0.765, "solve", GREEN)
        curves(figure.add_axes((0.08, 0.105, 0.38, 0.34)), layer, z, x)
        bars(figure.add_axes((0.55, 0.105, 0.43, 0.34)), layer, images)
        figure.savefig(OUTPUT, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()

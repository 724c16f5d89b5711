"""``camouflage predict`` and ``camouflage evaluate``: maps from a trained network, scores of anybody's maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ...cli.options import Device, many
from ..errors import UsageError
from .options import LeaveOutBad, Results, TestData, check_file

__all__ = ["evaluate", "predict"]

CHECKPOINT = Parameter(help="A trained network: model.safetensors, or the folder it is in.")
TestParts = Annotated[
    tuple[Path, ...],
    many("Dataset folders as distributed; their test parts are used.", show_default=False),
]


def predict(
    *,
    checkpoint: Annotated[Path, CHECKPOINT],
    output: Annotated[Path, Parameter(("--output", "-o"), help="Folder for the maps.")] = Path("maps"),
    data: TestParts = (),
    images: Annotated[
        tuple[Path, ...], many("Folders of images, with or without masks.", show_default=False)
    ] = (),
    leave_out_bad: LeaveOutBad = False,
    device: Device = "auto",
) -> None:
    """Write the map of every image as OUTPUT/DATASET/NAME.png, 8 bits, at the image's own size.

    --data takes datasets and predicts their test parts; --images takes any folders.
    """
    if not data and not images:
        raise UsageError("--data or --images is needed: which images?")
    from .applying import predict_images

    predict_images(
        checkpoint, data=data, images=images, output=output, leave_out_bad=leave_out_bad, device=device
    )


def evaluate(
    *,
    checkpoint: Annotated[Path | None, CHECKPOINT] = None,
    data: TestParts = (),
    test_data: TestData = (),
    predictions: Annotated[
        Path | None,
        Parameter(help="Folder of anybody's maps: DATASET/NAME.png, METHOD/DATASET/NAME.png, or NAME.png."),
    ] = None,
    masks: Annotated[
        Path | None, Parameter(help="Folder of masks, directly or in one folder per dataset.")
    ] = None,
    resize: Annotated[
        bool, Parameter(help="Resize maps to their masks as other evaluators do, or report them as unusable.")
    ] = True,
    leave_out_bad: LeaveOutBad = False,
    output: Results = None,
    device: Device = "auto",
) -> None:
    """Score a trained network on test sets, or anybody's folder of maps against a folder of masks.

    Scores: S, F, E, weighted F and mean absolute error, with pysodmetrics, at the size of the masks:

        invertible-attention camouflage evaluate --predictions maps --masks TestDataset
    """
    by_network, by_maps = checkpoint is not None, predictions is not None and masks is not None
    if by_network == by_maps or (predictions is None) != (masks is None):
        raise UsageError("give --checkpoint with --data, or --predictions with --masks")
    if by_maps and (data or test_data):
        raise UsageError(
            "--predictions are scored against --masks alone: --data and --test-data go with --checkpoint"
        )
    if by_network and not data and not test_data:
        raise UsageError("--data or --test-data is needed: which images?")
    check_file(output)
    from .applying import score_maps, score_network

    if checkpoint is not None:
        score_network(
            checkpoint,
            data=data,
            test_data=test_data,
            leave_out_bad=leave_out_bad,
            device=device,
            output=output,
        )
    elif predictions is not None and masks is not None:
        score_maps(predictions, masks, resize=resize, leave_out_bad=leave_out_bad, output=output)

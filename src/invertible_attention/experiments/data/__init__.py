"""Images for the experiments: bundled photographs, hub datasets, parquet files, folders."""

from __future__ import annotations

from .datasets import DATASETS, Dataset, open_splits
from .folder import ImageFolder, folder_splits, image_files
from .hub import HubImages, hub_splits, parquet_splits
from .images import Images, draw_images, fit_counts, whole_test_images
from .photographs import PHOTOGRAPHS, BundledPhotographs, bundled_photograph
from .preparation import dequantize, quantize, to_pixels, to_tensor
from .source import ImageSource, decode, open_image

__all__ = [
    "DATASETS",
    "PHOTOGRAPHS",
    "BundledPhotographs",
    "Dataset",
    "HubImages",
    "ImageFolder",
    "ImageSource",
    "Images",
    "bundled_photograph",
    "decode",
    "dequantize",
    "draw_images",
    "fit_counts",
    "folder_splits",
    "hub_splits",
    "image_files",
    "open_image",
    "open_splits",
    "parquet_splits",
    "quantize",
    "to_pixels",
    "to_tensor",
    "whole_test_images",
]

from __future__ import annotations

import pytest

from invertible_attention.experiments.published import (
    RESPONSES,
    TABLE_2,
    TABLE_4,
    TABLE_4_DATASETS,
    TABLE_5,
    reconstruction_table,
)


def test_published_tables_are_complete() -> None:
    assert set(TABLE_2) == {"cifar10", "svhn", "celeba"}
    for rows in (*TABLE_2.values(), TABLE_5):
        assert list(rows) == list(RESPONSES)
    assert len(TABLE_4) == 9
    for by_dataset in TABLE_4.values():
        assert tuple(by_dataset) == TABLE_4_DATASETS


@pytest.mark.parametrize("dataset", ["cifar10", "celeba"])
def test_v_scores_of_table_2_are_multiples_of_one_in_960(dataset: str) -> None:
    # The last partial batch was dropped, which leaves 15 · 64 test images; catches typing errors.
    for row in TABLE_2[dataset].values():
        images = row.v_score / 100 * 960
        assert images == pytest.approx(round(images), abs=0.01)


def test_values_are_in_range() -> None:
    for rows in (*TABLE_2.values(), TABLE_5):
        for row in rows.values():
            assert row.mse > 0
            assert 0.85 < row.ssim <= 1
            assert 30 < row.v_score <= 100
    for by_dataset in TABLE_4.values():
        for row in by_dataset.values():
            assert all(0 < value < 1 for value in row)
            assert row.mae < 0.15


def test_tables_map_to_their_datasets() -> None:
    assert reconstruction_table("cifar10", (32, 32)) == ("Table 2", TABLE_2["cifar10"])
    assert reconstruction_table("celeba", (218, 178)) == ("Table 5", TABLE_5)
    assert reconstruction_table("cifar10", (64, 64)) is None
    assert reconstruction_table("photos", (32, 32)) is None

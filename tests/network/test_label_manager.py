"""Labels as nnU-Net asks about them."""

import numpy as np
import pytest
import torch

from nnunet_softseg.datasets.raw_dataset import in_nnunets_layout
from nnunet_softseg.network.of_plans import SoftLabelManager

LABELS = {"background": 0, "cord": 1, "lesion": 2}


@pytest.fixture
def manager() -> SoftLabelManager:
    return SoftLabelManager(LABELS, None)


def test_one_head_per_foreground_label(manager: SoftLabelManager) -> None:
    assert manager.num_segmentation_heads == 2
    assert SoftLabelManager({"background": 0, "cord": 1}, None).num_segmentation_heads == 1


@pytest.mark.parametrize("as_type", [np.asarray, torch.as_tensor])
def test_label_map_is_strictly_above_a_half(manager: SoftLabelManager, as_type: type) -> None:
    soft = np.array([[0.0, 0.5, 0.5001, 0.6, 0.37], [0.0, 0.5, 0.1, 0.7, 0.36]], dtype=np.float32)[
        :, None, None
    ]
    label_map = manager.convert_logits_to_segmentation(as_type(soft))
    assert type(label_map) is type(as_type(soft))
    assert np.asarray(label_map).flatten().tolist() == [0, 0, 1, 2, 0]


def test_soft_maps_pass_unchanged(manager: SoftLabelManager) -> None:
    soft = np.random.default_rng(0).uniform(0, 1, (2, 3, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(manager.apply_inference_nonlin(soft).numpy(), soft)


def test_outside_of_the_crop_every_map_is_zero(manager: SoftLabelManager) -> None:
    soft = np.full((2, 2, 2, 2), 0.37, np.float32)
    full = manager.revert_cropping_on_probabilities(
        torch.from_numpy(soft), [[1, 3], [0, 2], [2, 4]], (4, 4, 4)
    )
    assert float(full.sum()) == pytest.approx(2 * 8 * 0.37, rel=1e-6)
    np.testing.assert_array_equal(full[:, 1:3, 0:2, 2:4], soft)


def test_wrong_number_of_channels_is_named(manager: SoftLabelManager) -> None:
    with pytest.raises(ValueError, match=r"expected 2 soft maps.*got 4"):
        manager.convert_probabilities_to_segmentation(np.zeros((4, 2, 2, 2), np.float32))


def test_nnunets_layout_gives_the_same_label_map(manager: SoftLabelManager) -> None:
    soft = np.random.default_rng(0).random((2, 3, 4, 5)).astype(np.float32)
    stored = in_nnunets_layout(soft, manager.scheme)
    assert stored.shape == (3, 3, 4, 5)
    np.testing.assert_array_equal(
        manager.convert_probabilities_to_segmentation(stored),
        manager.convert_probabilities_to_segmentation(soft),
    )

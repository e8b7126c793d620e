"""The one box: where it lies, that training draws its patches from it, and how S-I is found."""

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from affines import oblique
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_softseg.io.geometry import array_orientation
from nnunet_softseg.preprocessing.center_crop import (
    crop_axis,
    describe_patches,
    inside,
    kept_mass,
    network_box,
    patch_centres,
)

sizes = st.integers(1, 90)
patches = st.sampled_from([8, 16, 32, 48])


def test_box_of_the_paper() -> None:
    # 192 x 260 x 320 at 1 mm in (S-I, A-P, R-L) order and the paper's patch: 260 - 192 = 68 and 192 - 64 =
    # 128 to take away
    assert network_box((320, 260, 192), (320, 192, 64), 0) == ((0, 320), (34, 226), (64, 128))


def test_a_small_case_is_padded_evenly() -> None:
    assert network_box((100, 41, 20), (64, 48, 32), 0) == ((0, 100), (-4, 44), (-6, 26))


def test_without_crop_the_box_is_the_case() -> None:
    assert network_box((10, 20, 30), (8, 8, 8), None) == ((0, 10), (0, 20), (0, 30))


@given(st.tuples(sizes, sizes, sizes), st.tuples(patches, patches, patches), st.integers(0, 2))
def test_box_is_centred_to_half_a_voxel(shape: tuple[int, ...], patch: tuple[int, ...], si_axis: int) -> None:
    for axis, (start, stop) in enumerate(network_box(shape, patch, si_axis)):
        expected_size = shape[axis] if axis == si_axis else patch[axis]
        assert stop - start == expected_size
        assert abs((start + stop) / 2 - shape[axis] / 2) <= 0.5


@given(
    st.tuples(sizes, sizes, sizes),
    st.tuples(patches, patches, patches),
    st.integers(0, 2),
    st.integers(0, 30),
    st.integers(0, 2**31),
)
def test_nnunets_loader_draws_every_patch_from_the_box(
    shape: tuple[int, ...], patch: tuple[int, ...], si_axis: int, margin: int, seed: int
) -> None:
    """The loader cuts a patch with a margin for rotation; its centre crop is what the network gets."""
    margin += margin % 2  # nnU-Net's augmentation halves the margin
    initial = np.array(patch) + margin
    rng = np.random.default_rng(seed)
    labelled = rng.integers(0, shape[si_axis], size=5)
    table = patch_centres(shape, patch, si_axis, labelled)
    loader = SimpleNamespace(
        need_to_pad=initial - np.array(patch),
        patch_size=tuple(initial),
        has_ignore=False,
        annotated_classes_key=(-1, 0, 1),
    )
    np.random.seed(seed)
    starts, stops = nnUNetDataLoader.get_bbox(loader, np.array(shape), True, table)
    box = network_box(shape, patch, si_axis)
    for axis in range(3):
        start = starts[axis] + initial[axis] // 2 - patch[axis] // 2
        assert stops[axis] - starts[axis] == initial[axis]
        if axis == si_axis and shape[axis] > patch[axis]:
            assert 0 <= start <= shape[axis] - patch[axis]
        else:
            assert start == (shape[axis] - patch[axis]) // 2
            assert axis == si_axis or start == box[axis][0]


def test_patch_centres_reach_both_ends_and_prefer_the_label() -> None:
    table = patch_centres((100, 50, 50), (64, 48, 32), 0, np.array([0, 40, 99]))
    assert table[0][:, 1].tolist() == list(range(32, 69))  # a patch of 64 fits at 0 ... 36
    assert table[1][:, 1].tolist() == [32, 40, 68]
    assert {tuple(row[2:]) for row in table[0]} == {(25, 25)}


def test_no_label_leaves_only_the_first_key() -> None:
    table = patch_centres((10, 50, 50), (64, 48, 32), 0, np.empty(0, dtype=int))
    assert len(table[0]) == 1
    assert len(table[1]) == 0


def test_kept_mass_by_counting() -> None:
    soft = np.zeros((3, 4, 10, 10), dtype=np.float32)
    soft[0, :, 4:6, 4:6] = 0.5  # all inside
    soft[1, :, 4, 0] = 1.0  # at the edge: outside of the box of 4 voxels around the centre
    soft[1, :, 4, 5] = 3.0 / 4
    box = network_box((4, 10, 10), (4, 4, 4), 0)
    kept = kept_mass(soft, box)
    assert kept[0] == 1
    assert kept[1] == pytest.approx(0.75 / 1.75)
    assert np.isnan(kept[2])


def test_inside_cuts_the_padding_off() -> None:
    assert inside(((-4, 8), (2, 6)), (5, 6)) == (slice(0, 5), slice(2, 6))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "RPI", "PSR", "AIL", "SRP"])
@pytest.mark.parametrize("reader", [NibabelIO, NibabelIOWithReorient, SimpleITKIO, SimpleITKIOWithReorient])
def test_orientation_by_every_reader(tmp_path: Path, codes: str, reader: type) -> None:
    file = str(tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), oblique(codes)), file)
    _, properties = reader().read_images([file])
    # readers give (k, j, i); the reorienting ones turn the file to RAS first
    expected = "SAR" if "Reorient" in reader.__name__ else codes[::-1]
    assert array_orientation(properties, [0, 1, 2]) == expected
    assert array_orientation(properties, [2, 0, 1]) == expected[2] + expected[0] + expected[1]
    axis = crop_axis(properties, [2, 0, 1], [8, 8, 8])
    assert axis is not None
    assert (expected[2] + expected[0] + expected[1])[axis] in "SI"


def test_without_orientation_or_a_third_axis_there_is_no_fixed_patch(tmp_path: Path) -> None:
    """One decision, and one line that says why."""
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), tmp_path / "image.nii.gz")
    _, known = NibabelIO().read_images([str(tmp_path / "image.nii.gz")])
    picture = {"spacing": [999, 1, 1]}
    assert crop_axis(known, [0, 1, 2], [8, 8, 8]) == 0
    assert crop_axis(known, [0, 1, 2], [8, 8, 8], wanted=False) is None
    assert crop_axis(known, [0, 1, 2], [8, 8]) is None
    assert crop_axis(picture, [0, 1, 2], [8, 8, 8]) is None
    assert describe_patches(0, [8, 8, 8], wanted=True) == "around the centre of the image"
    assert describe_patches(None, [8, 8, 8], wanted=False) == "anywhere"
    assert "the configuration is 2d" in describe_patches(None, [8, 8], wanted=True)
    assert "do not tell their orientation" in describe_patches(None, [8, 8, 8], wanted=True)

"""A box of the network's grid holds what nnU-Net's preprocessing of the whole image gives there."""

from pathlib import Path

import numpy as np
import pytest
from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask
from affines import oblique
from grid_plans import by_nnunet, configuration, cut, plans
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from tiny_dataset import save_nifti

from nnunet_softseg.errors import UserError
from nnunet_softseg.inference import network_image
from nnunet_softseg.inference.network_image import NetworkImage, nonzero_box
from nnunet_softseg.preprocessing.resampling import REACH, area_means

TOLERANCE = 1e-5
"""Of the largest value: float32 holds 6e-8 of it, a spline cut off after 16 voxels loses 1e-9."""


WHOLE = (slice(None),) * 3


def noise(shape: tuple[int, ...], seed: int = 0, channels: int = 1) -> np.ndarray:
    """The hardest to interpolate: every voxel counts."""
    return np.random.default_rng(seed).normal(40, 15, (channels, *shape)).astype(np.float32)


def assert_as_nnunet(
    data: np.ndarray, spacing: tuple[float, ...], the_plans: object, manager: object, box: object = None
) -> NetworkImage:
    expected_properties, properties = {"spacing": list(spacing)}, {"spacing": list(spacing)}
    before = data.copy()
    whole = by_nnunet(data, expected_properties, the_plans, manager)
    image = NetworkImage.from_array(data, properties, the_plans, manager)
    np.testing.assert_array_equal(data, before)
    assert image.shape == whole.shape[1:]
    assert properties == expected_properties
    box = box or tuple((0, size) for size in image.shape)
    found = image.extract(box)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, cut(whole, box), rtol=0, atol=TOLERANCE * max(1, np.abs(whole).max()))
    return image


sizes = st.tuples(*[st.integers(1, 44)] * 3)
spacings = st.tuples(*[st.sampled_from([0.3, 0.5, 0.8, 1.0, 1.3, 2.2, 5.0])] * 3)


@given(
    shape=sizes,
    spacing=spacings,
    target=spacings,
    force_separate_z=st.sampled_from([None, True, False]),
    masked=st.booleans(),
    scheme=st.sampled_from(
        ["ZScoreNormalization", "CTNormalization", "RescaleTo01Normalization", "NoNormalization"]
    ),
    transpose=st.permutations([0, 1, 2]),
    border=st.integers(0, 3),
    draw=st.data(),
)
@settings(max_examples=100)
def test_any_box_equals_that_of_the_whole_image(
    shape, spacing, target, force_separate_z, masked, scheme, transpose, border, draw
) -> None:
    assume(all(1 <= round(s / t * n) <= 60 for s, t, n in zip(spacing, target, shape, strict=True)))
    data = noise(shape, seed=sum(shape), channels=2)
    data[:, :border] = 0  # nnU-Net crops it away
    data[:, data.shape[1] // 2, data.shape[2] // 2] = 0  # a hole, or a notch in a thin image
    assume(data.any() and not (border >= shape[0] > 0))
    manager = configuration(
        [target[axis] for axis in transpose],
        force_separate_z=force_separate_z,
        masked=masked,
        scheme=scheme,
        channels=2,
    )
    the_plans = plans(transpose, channels=2)
    properties = {"spacing": list(spacing)}
    try:
        grid = NetworkImage.from_array(data, properties, the_plans, manager).shape
    except UserError as error:  # without its border of zeros, less than half a voxel is left
        assert "at least one" in str(error)  # noqa: PT017
        return
    starts = [draw.draw(st.integers(-4, size - 1)) for size in grid]
    box = tuple(
        (start, draw.draw(st.integers(start + 1, size + 5))) for start, size in zip(starts, grid, strict=True)
    )
    assert_as_nnunet(data, spacing, the_plans, manager, box)


@given(
    shape=sizes,
    spacing=spacings,
    target=spacings,
    force_separate_z=st.sampled_from([None, False]),
    axis=st.integers(0, 2),
    draw=st.data(),
)
@settings(max_examples=60)
def test_own_slices_interpolated_are_the_box(shape, spacing, target, force_separate_z, axis, draw) -> None:
    assume(all(1 <= round(s / t * n) <= 60 for s, t, n in zip(spacing, target, shape, strict=True)))
    manager = configuration(target, force_separate_z=force_separate_z)
    image = NetworkImage.from_array(noise(shape, sum(shape)), {"spacing": list(spacing)}, plans(), manager)
    # Along another axis nnU-Net takes the nearest slice, and clips every one to its own range.
    assume(image._thick_axis() in (None, axis))
    starts = [draw.draw(st.integers(-4, size - 1)) for size in image.shape]
    box = [
        (start, draw.draw(st.integers(start + 1, size + 5)))
        for start, size in zip(starts, image.shape, strict=True)
    ]
    box[axis] = (0, image.shape[axis])
    own = image.own_slices(tuple(box), axis)
    assert own.shape[1 + axis] == shape[axis]
    whole = image.extract(tuple(box))
    found = image.interpolated(own, axis)
    np.testing.assert_allclose(found, whole, rtol=0, atol=TOLERANCE * max(1, np.abs(whole).max()))
    # from the first slice's outer face, in mm of the resampled field of view
    mm = shape[axis] / image.shape[axis]
    np.testing.assert_allclose(
        (image.slice_positions(axis) + 0.5) * mm, np.arange(shape[axis]) + 0.5, rtol=0, atol=1e-9
    )


def test_own_slices_of_what_is_resampled_as_a_whole_are_those_of_the_network() -> None:
    manager = configuration((1.0, 0.8, 0.8), resampling_fn_data="resample_torch_fornnunet")
    manager.configuration["resampling_fn_data_kwargs"] = {"is_seg": False, "force_separate_z": False}
    image = NetworkImage.from_array(noise((9, 20, 20)), {"spacing": [3.0, 1.0, 1.0]}, plans(), manager)
    box = ((0, 27), (-2, 9), (4, 30))
    own = image.own_slices(box, 0)
    np.testing.assert_array_equal(image.slice_positions(0), np.arange(27))
    np.testing.assert_array_equal(image.interpolated(own, 0), own)
    np.testing.assert_array_equal(own, image.extract(box))


@pytest.mark.parametrize("scale", [0.7, 0.9, 1.6])
@pytest.mark.parametrize("thick", [False, True])
def test_a_small_box_of_a_large_image_with_something_bright_around_it(scale: float, thick: bool) -> None:
    """A thousandfold brightness next to the box rings into it, one behind its margin must not be missed."""
    data = noise((16 if thick else 50, 80, 90))
    data[0, :, 30:32] *= 1000
    spacing = (5.0, 1.0, 1.0) if thick else (1.0, 1.0, 1.0)
    manager = configuration((1.0, scale, scale) if thick else (scale,) * 3)
    centre = [round(size * pitch / 2) for size, pitch in zip(data.shape[2:], (1 / scale,) * 2, strict=True)]
    box = ((8, 12), (centre[0] - 10, centre[0] + 9), (centre[1] - 3, centre[1] + 3))
    assert_as_nnunet(data, spacing, plans(), manager, box)


def test_nothing_but_the_box_and_its_margin_is_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = network_image.resample_part

    def spy(part: np.ndarray, *args: object, **keywords: object) -> np.ndarray:
        read.append(part.shape)
        return original(part, *args, **keywords)

    monkeypatch.setattr(network_image, "resample_part", spy)
    data = noise((60, 120, 140))
    image = NetworkImage.from_array(data, {"spacing": [1, 1, 1]}, plans(), configuration((0.8, 0.8, 0.8)))
    image.extract(((0, 75), (60, 80), (70, 90)))
    margin = REACH[3] + 2
    assert len(read) == 1
    assert read[0][0] == 60
    assert all(size <= 20 * 0.8 + 2 * margin for size in read[0][1:])


def test_equal_grids_are_not_touched_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_image, "resample_part", None)
    assert_as_nnunet(
        noise((12, 13, 14)), (1, 1, 1), plans(), configuration((1, 1, 1)), ((0, 12), (3, 9), (2, 20))
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"resampling_fn_data": "no_resampling_hack", "resampling_fn_data_kwargs": {}}, "no_resampling_hack"),
        (
            {"resampling_fn_data_kwargs": {"is_seg": False, "order": 1, "order_z": 0}},
            "resampling with order 1",
        ),
        (
            {
                "resampling_fn_data_kwargs": {
                    "is_seg": False, "order": 3, "order_z": 1, "force_separate_z": True
                }
            },
            "resampling with order_z 1",
        ),
    ],
)  # fmt: skip
def test_plans_with_another_resampling_go_the_whole_way_and_say_so(changes: dict, reason: str) -> None:
    spacing = (1, 1, 1) if "hack" in reason else (2.0, 1, 1)
    manager = configuration((1, 1, 1), **changes)
    box = ((2, 9), (-2, 9), (3, 8))
    image = assert_as_nnunet(noise((10, 11, 12)), spacing, plans(), manager, box)
    assert reason in (image.whole_because or "")


@pytest.mark.parametrize("reader", [NibabelIO, NibabelIOWithReorient, SimpleITKIO, SimpleITKIOWithReorient])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PSR", "AIL"])
def test_files_of_any_orientation(tmp_path: Path, reader: type, codes: str) -> None:
    """Left-handed, oblique, permuted: what the reader makes of a file is what is cropped."""
    files = [tmp_path / f"sub-01_T2w_{channel:04d}.nii.gz" for channel in range(2)]
    for channel, file in enumerate(files):
        save_nifti(file, noise((21, 24, 27), channel)[0], oblique(codes))
    the_plans = plans(reader=reader, channels=2)
    manager = configuration((1.1, 0.7, 0.9), channels=2)
    data, properties = reader().read_images([str(file) for file in files])
    whole = by_nnunet(data, properties, the_plans, manager)
    image = NetworkImage.from_files([str(file) for file in files], the_plans, manager)
    box = tuple((size // 4, size // 2 + 3) for size in image.shape)
    np.testing.assert_allclose(image.extract(box), cut(whole, box), rtol=0, atol=TOLERANCE * 5)
    assert image.properties["spacing"] == properties["spacing"]


@given(st.integers(1, 30), st.integers(1, 7), st.integers(1, 5), st.integers(1, 5))
def test_a_coarse_cell_is_the_mean_of_what_it_covers(size: int, stride: int, pitch: int, target: int) -> None:
    """Along one axis, against repetition on a grid fine enough for both spacings."""
    line = noise((size,), size)[0]
    grid = round(size * pitch / target)
    assume(grid > 0)
    cell = stride * size / grid
    found = area_means(size, -(-grid // stride), cell) @ line
    fine = np.repeat(line.astype(np.float64), grid)  # one network voxel is `size` of these
    cells = [fine[start : start + stride * size] for start in range(0, len(fine), stride * size)]
    np.testing.assert_allclose(found, [part.mean() for part in cells], rtol=1e-5, atol=1e-5)


def test_the_coarse_case_is_the_whole_case_averaged() -> None:
    data = noise((17, 20, 24), channels=2)
    the_plans, manager = plans(channels=2), configuration((1, 1, 1), channels=2)
    image = NetworkImage.from_array(data, {"spacing": [1, 1, 1]}, the_plans, manager)
    whole = by_nnunet(data, {"spacing": [1, 1, 1]}, the_plans, manager)
    coarse = image.coarse((4, 4, 4), WHOLE)
    assert coarse.dtype == np.float32
    assert tuple(coarse.shape) == (2, 5, 5, 6)
    blocks = whole[:, :16].reshape(2, 4, 4, 5, 4, 6, 4).mean(axis=(2, 4, 6))
    np.testing.assert_allclose(coarse[:, :4], blocks, atol=1e-5)
    np.testing.assert_allclose(coarse[:, 4], whole[:, 16].reshape(2, 5, 4, 6, 4).mean(axis=(2, 4)), atol=1e-5)


def test_a_part_of_the_coarse_case_is_that_of_the_whole() -> None:
    image = NetworkImage.from_array(
        noise((20, 60, 50), channels=2),
        {"spacing": [1, 2.5, 3]},
        plans(channels=2),
        configuration((1, 0.7, 0.8), channels=2),
    )
    whole, part = image.coarse((2, 1, 1), WHOLE), (slice(None), slice(31, 131), slice(5, 150))
    # Products of matrices of other sizes may be summed in another order: float32's last digit.
    np.testing.assert_allclose(image.coarse((2, 1, 1), part), whole[(slice(None), *part)], atol=1e-6)


def test_a_checkerboard_is_grey_from_afar() -> None:
    """Averaged, not sampled: what alternates from voxel to voxel would alias."""
    board = np.indices((30, 30, 30)).sum(axis=0) % 2
    image = NetworkImage.from_array(
        board[None].astype(np.float32), {"spacing": [1, 1, 1]}, plans(), configuration((0.5, 1.5, 1))
    )
    assert float(np.abs(image.coarse((12, 4, 6), WHOLE)).max()) < 1e-5


def test_a_constant_image_and_zeros_are_known() -> None:
    for value, constant in ((0, True), (300, True), (None, False)):
        data = noise((9, 9, 9)) if value is None else np.full((1, 9, 9, 9), value, np.float32)
        image = NetworkImage.from_array(data, {"spacing": [1, 1, 1]}, plans(), configuration((2, 2, 2)))
        assert image.constant is constant
        if constant:
            assert not image.extract(((0, 4), (0, 4), (0, 4))).any()


def test_arrays_with_nan_are_refused() -> None:
    data = noise((9, 9, 9))
    data[0, 1, 2, 3] = np.nan
    data[0, 1, 2, 4] = -np.inf
    with pytest.raises(UserError, match="found 2 NaN or infinite voxels of 729"):
        NetworkImage.from_array(data, {"spacing": [1, 1, 1]}, plans(), configuration((1, 1, 1)))


@settings(max_examples=60)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 2), *[st.integers(1, 7)] * 3), elements=st.just(0.0)),
    st.lists(st.tuples(*[st.integers(0, 6)] * 4), max_size=4),
)
def test_the_box_of_what_is_not_zero_is_nnunets(
    data: np.ndarray, places: list[tuple[int, int, int, int]]
) -> None:
    for place in places:
        data[tuple(at % size for at, size in zip(place, data.shape, strict=True))] = -0.5
    assert nonzero_box(data) == get_bbox_from_mask((data != 0).any(axis=0))


def test_grids_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"9 x 9 x 9 voxels of 0\.05 x 1 x 1 mm .* at least one of 1 x 1 x 1"):
        NetworkImage.from_array(
            noise((9, 9, 9)), {"spacing": [0.05, 1, 1]}, plans(), configuration((1, 1, 1))
        )
    image = NetworkImage.from_array(
        noise((9, 9, 9)), {"spacing": [1000.0] * 3}, plans(), configuration((1, 1, 1))
    )
    assert image.shape == (9000, 9000, 9000)
    with pytest.raises(UserError, match="9000 x 9000 x 9000 voxels of 1 x 1 x 1 mm, expected at most"):
        image.extract(tuple((0, 9000) for _ in range(3)))
    assert image.extract(((4000, 4010), (-5, 3), (8990, 9010))).shape == (1, 10, 8, 20)

"""Which level a slice belongs to: from images of labels, from points, from names."""

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nnunet_softseg.errors import UserError
from nnunet_softseg.metrics.morphometry import level_summary, mean_csa, slice_morphometry
from nnunet_softseg.metrics.morphometry.csa import companions_in
from nnunet_softseg.metrics.morphometry.levels import level_name, parse_levels

SHAPE = (24, 24, 12)
AFFINE = np.array([[1, 0, 0, -12], [0, 1, 0, -12], [0, 0, 3, -16.5], [0, 0, 0, 1.0]])


def column(values: np.ndarray | float = 1.0) -> nib.Nifti1Image:
    """A square cord of 4 x 4 mm along z; slices from z = -16.5 to 16.5 mm."""
    volume = np.zeros(SHAPE, np.float32)
    volume[10:14, 10:14] = values
    return nib.Nifti1Image(volume, AFFINE)


def labels_image(volume: np.ndarray, affine: np.ndarray = AFFINE) -> nib.Nifti1Image:
    return nib.Nifti1Image(volume.astype(np.uint8), affine)


def levels_of(table) -> list[int]:
    return table["level"].fillna(0).tolist()


def turned(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    return image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(codes))
        )
    )


# Asking


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (2, (2,)),
        ((2, 3), (2, 3)),
        ("2:4", (2, 3, 4)),
        (["C2", "c3"], (2, 3)),
        ("C7:T2", (7, 8, 9)),
        (["3,2", "L1"], (2, 3, 20)),
        ("C2-C3", (2, 3)),
        ([3, 2, 2], (2, 3)),
    ],
)
def test_levels_are_asked_for_by_number_name_or_range(wanted, found) -> None:
    assert parse_levels(wanted) == found


@pytest.mark.parametrize("wanted", ["", "C8", "4:2", "0", "30", "C2:", "x", [], "2;3", "2.5"])
def test_other_wishes_are_refused(wanted) -> None:
    with pytest.raises(UserError, match="expected"):
        parse_levels(wanted)


def test_levels_have_names() -> None:
    assert [level_name([level]) for level in (1, 7, 8, 19, 20, 24, 25)] == [
        "C1", "C7", "T1", "T12", "L1", "L5", "S1",
    ]  # fmt: skip
    assert level_name([2, 3]) == "C2-C3"
    assert level_name([2, 4]) == "C2+C4"


# From an image


@pytest.mark.parametrize("codes", ["RAS", "PSR", "LPI"])
def test_the_level_with_most_of_the_cord_counts(codes) -> None:
    soft = column()
    volume = np.zeros(SHAPE)
    volume[:, :, 4:8] = 3
    volume[:, :, 8:] = 2
    volume[10:12, 10:14, 7] = 2  # half of the cord: the superior level counts
    volume[10:13, 10:14, 4] = 4  # three quarters of it, of few voxels in the slice
    expected = [0, 0, 0, 0, 4, 3, 3, 2, 2, 2, 2, 2]
    table = slice_morphometry(turned(soft, codes), levels=labels_image(volume))
    assert levels_of(table.sort_values("z_mm")) == expected
    # A level outside of the cord is not asked where one lies on it; soft values are the votes.
    weighted = np.array(soft.dataobj)
    weighted[10:13, :, 4] *= 0.3
    table = slice_morphometry(nib.Nifti1Image(weighted, AFFINE), levels=labels_image(volume))
    assert levels_of(table)[4] == 3


def test_labels_beside_the_cord_count_where_none_lies_on_it() -> None:
    values = np.ones(12)
    values[6] = 0
    bodies = np.zeros(SHAPE)
    bodies[8:16, 18:24, 5:] = 2
    table = slice_morphometry(column(values), levels=labels_image(bodies))
    assert levels_of(table) == [0] * 5 + [2] * 7
    assert math.isnan(table["csa_mm2"][6])


def test_another_grid_is_refused_with_both() -> None:
    other = AFFINE.copy()
    other[0, 3] += 0.5
    with pytest.raises(UserError, match=r"first voxel at \(-12, .*found .* at \(-11.5, .*--discs"):
        slice_morphometry(column(), levels=labels_image(np.ones(SHAPE), other))
    with pytest.raises(UserError, match=r"24 x 24 x 12 voxels of .* found 24 x 24 x 11 voxels"):
        slice_morphometry(column(), levels=labels_image(np.ones((24, 24, 11))))
    with pytest.raises(UserError, match="found 4-D"):
        slice_morphometry(column(), levels=labels_image(np.ones((*SHAPE, 2))))


@pytest.mark.parametrize("value", [2.5, -1.0, 300.0])
def test_values_that_are_no_levels_are_refused(value) -> None:
    volume = np.full(SHAPE, 2.0, np.float32)
    volume[3, 3, 3] = value
    with pytest.raises(UserError, match=f"whole numbers from 0 to 100, found {value:g}: labels must not"):
        slice_morphometry(column(), levels=nib.Nifti1Image(volume, AFFINE))


def test_points_given_as_levels_are_told_from_them() -> None:
    points = np.zeros(SHAPE)
    points[12, 20, 3], points[12, 20, 8] = 4, 3
    with pytest.raises(UserError, match=r"single voxels .values 3, 4.*--discs"):
        slice_morphometry(column(), levels=labels_image(points))


def test_an_empty_level_image_gives_no_levels() -> None:
    assert levels_of(slice_morphometry(column(), levels=labels_image(np.zeros(SHAPE)))) == [0] * 12


# From discs


def discs_at(points: dict[int, tuple[float, float, float]], codes: str = "RAS") -> nib.Nifti1Image:
    """Single voxels of 0.5 mm on a grid of their own."""
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = -30
    volume = np.zeros((121, 121, 121), np.uint8)
    for value, point in points.items():
        volume[tuple(np.round((np.array(point) + 30) * 2).astype(int))] = value
    return turned(nib.Nifti1Image(volume, affine), codes)


@pytest.mark.parametrize("codes", ["RAS", "PIR"])
def test_vertebra_n_lies_between_disc_n_and_the_next(codes) -> None:
    """The Toolbox's convention: 3 is C2/C3, the top of C3. Slices lie at -16.5, -13.5, ... 16.5 mm."""
    discs = discs_at({3: (0, 9, 12), 4: (0, 9, 3), 5: (1, 9, -6), 50: (0, 9, 20), 49: (0, 9, 22)}, codes)
    table = slice_morphometry(column(), discs=discs)
    assert levels_of(table) == [0, 0, 0, 0, 4, 4, 4, 3, 3, 3, 0, 0]


def test_what_lies_between_discs_that_do_not_follow_is_not_known() -> None:
    table = slice_morphometry(column(), discs=discs_at({3: (0, 9, 12), 5: (0, 9, 3), 6: (0, 9, -6)}))
    assert levels_of(table) == [0, 0, 0, 0, 5, 5, 5, 0, 0, 0, 0, 0]


def test_discs_are_projected_across_the_cord() -> None:
    """In front of a cord that leans by 30 degrees, a disc divides it where the plane across it does."""
    slope = math.tan(math.radians(30))
    volume = np.zeros((20, 60, 60), np.float32)
    affine = np.eye(4)
    affine[:3, 3] = [-10, -30, -30]
    for z in range(60):
        volume[8:12, 28 + round(slope * (z - 30)) : 32 + round(slope * (z - 30)), z] = 1
    across = np.array([0, math.cos(math.radians(30)), -math.sin(math.radians(30))])
    on_line = {disc: np.array([-0.5, slope * z - 0.5, z]) for disc, z in ((3, 12.5), (4, -8.5))}
    discs = discs_at({disc: tuple(point + 10 * across) for disc, point in on_line.items()})
    table = slice_morphometry(nib.Nifti1Image(volume, affine), discs=discs)
    found = table[table["level"] == 3]["slice"]
    # The discs themselves lie 5 mm lower than where they divide the cord.
    assert found.min() == pytest.approx(30 - 8.5, abs=1.1)
    assert found.max() == pytest.approx(30 + 12.5, abs=1.1)


def test_discs_of_several_voxels_count_by_their_centre() -> None:
    volume = np.zeros(SHAPE)
    volume[8:16, 16:20, 9], volume[8:16, 16:20, 4] = 3, 4  # z = 10.5 and -4.5
    table = slice_morphometry(column(), discs=labels_image(volume))
    assert levels_of(table) == [0] * 5 + [3] * 5 + [0] * 2


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({3: (0, 9, -6), 4: (0, 9, 12)}, "expected disc 4 below disc 3, found it 18.0 mm above"),
        ({50: (0, 9, 3)}, "numbers of discs, 1 to 26, found none: 3 marks C2/C3"),
        ({}, "found none"),
    ],
)
def test_bad_discs_are_named(points, message) -> None:
    with pytest.raises(UserError, match=message):
        slice_morphometry(column(), discs=discs_at(points))


def test_whole_levels_given_as_discs_are_told_from_them() -> None:
    volume = np.zeros(SHAPE)
    volume[:, :, :6], volume[:, :, 6:] = 4, 3
    with pytest.raises(UserError, match=r"found value 3 over 15 mm .* --levels"):
        slice_morphometry(column(), discs=labels_image(volume))


def test_an_empty_map_with_discs_has_no_levels() -> None:
    table = slice_morphometry(column(0.0), discs=discs_at({3: (0, 9, 12), 4: (0, 9, 3)}))
    assert levels_of(table) == [0] * 12


def test_levels_and_discs_at_once_are_refused() -> None:
    with pytest.raises(UserError, match="found both"):
        slice_morphometry(column(), levels=labels_image(np.ones(SHAPE)), discs=discs_at({3: (0, 9, 12)}))


# Means


def test_the_mean_of_c2_c3_is_that_over_its_slices() -> None:
    values = np.array([0.1, 0.2, 0.3, 0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 0.4, 0.2])
    volume = np.zeros(SHAPE)
    volume[:, :, 2:5], volume[:, :, 5:9], volume[:, :, 9:] = 3, 2, 1
    table = slice_morphometry(column(values), levels=labels_image(volume))
    assert mean_csa(table, (2, 3)) == pytest.approx(16 * (0.3 + 0.5 + 0.6 + 0.7 + 0.8 + 0.9) / 6)
    assert mean_csa(table, "C3") == pytest.approx(16 * 0.4)
    assert mean_csa(table, 2, "csa_hard_mm2") == 16
    assert math.isnan(mean_csa(table, 7))
    table.insert(0, "file", "a")
    summary = level_summary(table, (2, 3)).set_index("levels")
    assert summary.index.tolist() == ["C2", "C3", "C2-C3"]
    assert summary["num_slices"].tolist() == [4, 2, 6]
    assert summary["num_empty"].tolist() == [0, 1, 1]
    assert summary.loc["C3", "num_flagged"] == 2  # beside the gap; and below a half
    assert summary["csa_mm2_mean"].tolist() == pytest.approx([12, 6.4, 16 * 3.8 / 6])
    assert summary.loc["C3", "csa_mm2_std"] == pytest.approx(1.6 * math.sqrt(2))
    assert summary["length_mm"].tolist() == pytest.approx([12, 6, 18])
    everything = level_summary(table).set_index("levels")
    assert everything.index.tolist() == ["C1", "C2", "C3", "all"]
    assert everything.loc["all", "csa_mm2_mean"] == pytest.approx(16 * values.sum() / 11)


# Companions


def write_empty(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("map_name", "found"),
    [
        ("sub-1_T2w_0001.nii.gz", "a/sub-1_T2w_desc-levels_dseg.nii.gz"),
        ("sub-1_T2w.nii.gz", "a/sub-1_T2w_desc-levels_dseg.nii.gz"),
        ("sub-1_T2w_label-SC_desc-softseg_probseg.nii.gz", "a/sub-1_T2w_desc-levels_dseg.nii.gz"),
        ("sub-1_T1w_seg-manual.nii.gz", "sub-1_T1w.nii"),
        ("sub-10_T2w_0001.nii.gz", "sub-10_T2w_seg_labeled.nii.gz"),
    ],
)
def test_the_level_image_of_a_map_is_found_by_name(tmp_path: Path, map_name, found) -> None:
    write_empty(
        tmp_path / "levels",
        "a/sub-1_T2w_desc-levels_dseg.nii.gz",
        "a/sub-1_T2w_desc-other_dseg.nii.gz",
        "sub-1_T1w.nii",
        "sub-10_T2w_seg_labeled.nii.gz",
        ".sub-1_T2w_levels.nii.gz",
        "sub-1_T2w_levels.txt",
    )
    assert companions_in(tmp_path / "levels", [tmp_path / map_name], "level") == [tmp_path / "levels" / found]


def test_a_map_is_not_its_own_level_image(tmp_path: Path) -> None:
    write_empty(tmp_path, "x_T2w_desc-truth_probseg.nii.gz", "x_T2w_desc-levels_dseg.nii.gz")
    (found,) = companions_in(tmp_path, [tmp_path / "x_T2w_desc-truth_probseg.nii.gz"], "level")
    assert found.name == "x_T2w_desc-levels_dseg.nii.gz"
    write_empty(tmp_path / "other", "x.nii.gz", "x_vertebrae.nii.gz")
    (found,) = companions_in(tmp_path / "other", [tmp_path / "other" / "x.nii.gz"], "level")
    assert found.name == "x_vertebrae.nii.gz"


@pytest.mark.parametrize("kind", ["level", "disc", "rootlet"])
@pytest.mark.parametrize("ending", ["_seg", "_seg-manual", "_label-SC_mask", "_softseg", "_label-SC_probseg"])
def test_a_segmentation_is_no_level_image(tmp_path: Path, kind: str, ending: str) -> None:
    there = [f"sub-1_T2w_label-{kind}s_seg.nii.gz", *(f"sub-{n}_T2w{ending}.nii.gz" for n in (1, 2))]
    write_empty(tmp_path, *there)
    maps = [Path(f"maps/sub-{n}_T2w_seg.nii.gz") for n in (1, 2)]
    assert companions_in(tmp_path, maps[:1], kind) == [tmp_path / there[0]]
    with pytest.raises(UserError, match=f"sub-2_T2w_seg.nii.gz: {kind} image not found in .*rename it"):
        companions_in(tmp_path, maps, kind)


@pytest.mark.parametrize(("run", "found"), [("1", True), ("01", True), ("2", False)])
@pytest.mark.parametrize("map_name", ["maps/sub-1_run-1_T2w_seg.nii.gz", "sub-1_run-1_T2w_0001.nii.gz"])
def test_discs_of_another_run_are_not_those_of_a_map(
    tmp_path: Path, map_name: str, run: str, found: bool
) -> None:
    write_empty(tmp_path, discs := f"sub-1_acq-sag_run-{run}_T2w_label-discs_dseg.nii.gz")
    maps = [tmp_path / "elsewhere" / map_name]
    if found:
        assert companions_in(tmp_path, maps, "disc") == [tmp_path / discs]
    else:
        with pytest.raises(UserError, match="disc image not found"):
            companions_in(tmp_path, maps, "disc")


def test_none_or_several_are_refused(tmp_path: Path) -> None:
    write_empty(tmp_path, "x_T2w_a.nii.gz", "x_T2w_b.nii.gz", "yz_levels.nii.gz")
    with pytest.raises(
        UserError, match=r"one level image of .*x_T2w_0001.nii.gz, found 2: x_T2w_a.nii.gz, x_T2w_b"
    ):
        companions_in(tmp_path, [Path("maps/x_T2w_0001.nii.gz")], "level")
    with pytest.raises(
        UserError,
        match=r"expected one file named y\[_...\].nii.gz \(with disc in it.*, found none among 3 images",
    ):
        companions_in(tmp_path, [Path("maps/y.nii.gz")], "disc")


def test_levels_and_discs_stored_with_a_slope_are_whole_numbers(tmp_path: Path) -> None:
    """An int16 file with a slope gives 2.00003 and 2.99998, as some tools write them."""
    levels = np.repeat([4, 3, 2], 4)
    volume = np.broadcast_to(levels, (8, 8, 12)).astype(np.float64)
    image = nib.Nifti1Image(volume, np.eye(4))
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "levels.nii.gz")
    stored = nib.load(tmp_path / "levels.nii.gz")
    assert (np.asarray(stored.dataobj) != volume).any()  # else this tests nothing
    mask = np.zeros(volume.shape, np.uint8)
    mask[2:5, 2:5] = 1
    table = slice_morphometry(nib.Nifti1Image(mask, np.eye(4)), levels=stored)
    assert table["level"].tolist() == levels.tolist()
    off = nib.Nifti1Image(volume + 0.01, np.eye(4))
    with pytest.raises(UserError, match=r"expected whole numbers from 0 to 100, found 2.01, 3.01, 4.01"):
        slice_morphometry(nib.Nifti1Image(mask, np.eye(4)), levels=off)

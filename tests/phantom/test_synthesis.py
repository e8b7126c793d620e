"""Synthetic images: the soft label against geometry, brightness as drawn, the same files again."""

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nnunet_softseg.cli import main
from nnunet_softseg.datasets.conversion import convert
from nnunet_softseg.errors import UserError
from nnunet_softseg.phantom.anatomy import straight_cylinder
from nnunet_softseg.phantom.synthesis import synthesise
from nnunet_softseg.phantom.synthesis.image_plan import (
    Artefacts,
    ImagePlan,
    Palette,
    Placement,
    Voxels,
    draw_plan,
)
from nnunet_softseg.phantom.synthesis.image_render import Drawn, render
from nnunet_softseg.phantom.synthesis.label_anatomy import (
    PAM50_MAPS,
    LabelAnatomy,
    Layer,
    Volume,
    canal_layers,
    label_map_anatomy,
)

AROUND, STRUCTURE = 1, 2
PALETTE = Palette(mean={AROUND: 0.3, STRUCTURE: 0.8}, uneven={AROUND: 0.0, STRUCTURE: 0.0})
RESOLUTIONS = [
    Voxels((60, 60, 60), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    Voxels((100, 100, 10), (0.5, 0.5, 6.0), (0.5, 0.5, 6.0)),
    Voxels((12, 64, 64), (5.0, 0.9, 0.9), (5.0, 0.9, 0.9)),
    Voxels((56, 8, 56), (1.1, 8.0, 1.1), (1.1, 8.0, 1.1)),
]


def fine_grid(half_mm: float = 34.0, step: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (3, X, Y, Z) in mm of a fine grid around the origin, and its affine."""
    axis = np.arange(-half_mm, half_mm + step / 2, step)
    affine = np.diag([step, step, step, 1.0])
    affine[:3, 3] = -half_mm
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij")), affine


def ellipsoid(radii: tuple[float, float, float]) -> LabelAnatomy:
    """An ellipsoid of known volume in a box of another tissue, as a label map."""
    points, affine = fine_grid()
    inside = sum((at / radius) ** 2 for at, radius in zip(points, radii, strict=True)) < 1
    tissues = np.where(inside, STRUCTURE, AROUND).astype(np.uint8)
    return LabelAnatomy("ellipsoid", Volume(tissues, affine), (STRUCTURE,))


def cylinder(radius: float) -> LabelAnatomy:
    """A cylinder along S-I as layer, its share linear over the width of a point."""
    (x, y, z), affine = fine_grid()
    share = np.clip(0.5 + (radius - np.hypot(x, y)) / 0.5, 0, 1).astype(np.float32)
    around = np.ones_like(share)
    around[np.abs(z) > 40] = 0
    layers = (Layer(Volume(around, affine), AROUND), Layer(Volume(share, affine), STRUCTURE))
    tissues = Volume(np.full(share.shape, AROUND, np.uint8), affine)
    return LabelAnatomy("cylinder", tissues, (STRUCTURE,), layers)


def volume_mm3(drawn: Drawn) -> float:
    return float(drawn.share.sum(dtype=float)) * abs(float(np.linalg.det(drawn.affine[:3, :3])))


@pytest.mark.parametrize("voxels", RESOLUTIONS, ids=lambda voxels: str(voxels.voxel_mm))
def test_the_volume_of_an_ellipsoid_is_the_same_at_every_resolution(voxels: Voxels) -> None:
    drawn = render(ellipsoid((14.0, 9.0, 20.0)), ImagePlan(voxels, PALETTE))
    assert volume_mm3(drawn) == pytest.approx(4 / 3 * np.pi * 14 * 9 * 20, rel=0.01)


def test_turning_and_scaling_change_a_volume_by_the_product_of_the_scales() -> None:
    place = Placement(centre_mm=(2.0, -1.0, 3.0), angles_deg=(15.0, -8.0, 10.0), scale=(1.1, 0.9, 1.2))
    drawn = render(ellipsoid((12.0, 9.0, 16.0)), ImagePlan(RESOLUTIONS[0], PALETTE, place))
    assert volume_mm3(drawn) == pytest.approx(4 / 3 * np.pi * 12 * 9 * 16 * 1.1 * 0.9 * 1.2, rel=0.01)


def test_scale_is_along_the_axes_of_the_image() -> None:
    """Through the centre of a sphere, the share along each axis adds up to its diameter times the scale."""
    scale = (1.2, 0.8, 1.0)
    share = render(ellipsoid((12.0,) * 3), ImagePlan(RESOLUTIONS[0], PALETTE, Placement(scale=scale))).share
    lines = (share[:, 29:31, 29:31], share[29:31, :, 29:31], share[29:31, 29:31, :])
    for line, factor in zip(lines, scale, strict=True):
        assert line.sum(dtype=float) / 4 == pytest.approx(
            24 * factor, abs=1.0
        )  # label maps in steps of 0.5 mm


@pytest.mark.parametrize("voxels", RESOLUTIONS[:3], ids=lambda voxels: str(voxels.voxel_mm))
def test_the_section_of_a_cylinder_in_each_slice_is_that_of_a_circle(voxels: Voxels) -> None:
    drawn = render(cylinder(6.0), ImagePlan(voxels, PALETTE))
    pixel = voxels.voxel_mm[0] * voxels.voxel_mm[1]
    areas = drawn.share.sum(axis=(0, 1), dtype=float) * pixel
    assert areas[1:-1] == pytest.approx(np.pi * 36, rel=0.01)


def test_a_gap_between_slices_leaves_the_share_of_what_is_seen() -> None:
    """Of a cylinder along S-I, a slab of any thickness holds the same share."""
    gaps = dataclasses.replace(RESOLUTIONS[1], slab_mm=(0.5, 0.5, 2.0))
    whole, seen = (render(cylinder(6.0), ImagePlan(v, PALETTE)).share for v in (RESOLUTIONS[1], gaps))
    assert seen == pytest.approx(whole, abs=1e-5)


def test_brightness_is_mixed_by_the_share_and_pure_tissue_has_the_brightness_drawn() -> None:
    plan = ImagePlan(RESOLUTIONS[0], PALETTE, artefacts=Artefacts(gain=1000.0))
    drawn = render(cylinder(6.0), plan)
    inner = (slice(5, -5),) * 3
    expected = 1000 * (0.3 + drawn.share * (0.8 - 0.3))
    assert drawn.image[inner] == pytest.approx(expected[inner], abs=0.51)  # rounded to whole numbers
    assert set(np.unique(drawn.image[inner][drawn.share[inner] == 1])) == {800}
    assert set(np.unique(drawn.image[inner][drawn.share[inner] == 0])) == {300}


@pytest.mark.parametrize("removed", ["structure", "filled", "anatomy"])
@pytest.mark.parametrize("anatomy", [cylinder(6.0), ellipsoid((9.0, 9.0, 9.0))], ids=lambda a: a.name)
def test_an_image_without_the_structure_has_an_empty_label(anatomy: LabelAnatomy, removed: str) -> None:
    blobs = dataclasses.replace(PALETTE, blobs=(0.1, 0.2))
    drawn = render(anatomy, ImagePlan(RESOLUTIONS[0], blobs, removed=removed))
    assert not drawn.share.any()
    assert drawn.image.max() < 500, "nothing is as bright as the structure"


def test_noise_has_the_deviation_that_the_ratio_says() -> None:
    """Far above 0, Rician noise is normal; SNR is that of a brightness of 0.5."""
    drawn = render(cylinder(6.0), ImagePlan(RESOLUTIONS[0], PALETTE, artefacts=Artefacts(snr=20.0)))
    inside = drawn.image[drawn.share == 1].astype(float)
    assert inside.std() == pytest.approx(1000 * 0.5 / 20, rel=0.05)


def test_a_squeezed_cylinder_is_thinner_from_front_to_back_and_as_wide() -> None:
    """At the height of the compression, A-P extent is divided by nearly 1 + squeeze."""
    place = Placement(squeeze=0.5, squeeze_at_mm=0.0, squeeze_length_mm=6.0)
    drawn = render(cylinder(6.0), ImagePlan(RESOLUTIONS[0], PALETTE, place))
    middle, end = drawn.share[:, :, 30], drawn.share[:, :, 55]
    width, depth = (section.sum(axis=0).max() for section in (middle, middle.T))
    assert width == pytest.approx(end.sum(axis=0).max(), abs=0.3)
    assert depth == pytest.approx(12 / 1.5, abs=1.0)


def test_random_images_have_labels_in_0_to_1_and_the_same_seed_gives_the_same_bytes() -> None:
    anatomy = cylinder(6.0)
    for seed in range(3):
        plans = [draw_plan(anatomy, np.random.default_rng(seed), without=0.0) for _ in range(2)]
        plans = [
            dataclasses.replace(plan, voxels=Voxels((30, 30, 20), (2.0, 2.0, 3.0), (2.0, 2.0, 2.5)))
            for plan in plans
        ]
        first, second = (render(anatomy, plan) for plan in plans)
        assert first.image.tobytes() == second.image.tobytes()
        assert first.share.tobytes() == second.share.tobytes()
        assert first.share.min() >= 0
        assert 0.5 < first.share.max() <= 1


def test_the_layers_of_a_phantom_are_nested_and_the_cord_has_the_volume_of_its_geometry() -> None:
    half = np.array([30.0, 30.0, 20.0])
    canal, thecal, cord, grey = canal_layers(straight_cylinder((6.0, 5.0)), half)
    for outer, inner in ((canal, thecal), (thecal, cord), (cord, grey)):
        assert (inner.share.values <= outer.share.values + 1e-6).all()
    length = cord.share.values.shape[2] * cord.share.affine[2, 2]
    volume = cord.share.values.sum(dtype=float) * np.linalg.det(cord.share.affine[:3, :3])
    assert volume == pytest.approx(np.pi * 6 * 5 * length, rel=0.005)


def test_a_folder_without_the_maps_of_the_template_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found no PAM50_cord\.nii\.gz"):
        synthesise(None, tmp_path / "bids", 1, pam50=tmp_path, progress=False)


# Label maps and images of users


def save(file: Path, values: np.ndarray, affine: np.ndarray, orientation: str = "RAS") -> Path:
    """Write a volume with array axes in this orientation, the same in space."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image, codes = nib.Nifti1Image(values, affine), nib.orientations.axcodes2ornt
    image.as_reoriented(nib.orientations.ornt_transform(codes("RAS"), codes(orientation))).to_filename(file)
    return file


def box_of(values: np.ndarray, half_mm: tuple[float, float, float]) -> np.ndarray:
    """Values of a `fine_grid` within a box around the origin, 0 outside of it."""
    points, _ = fine_grid()
    within = [np.abs(at) <= half for at, half in zip(points, half_mm, strict=True)]
    return np.where(np.logical_and.reduce(within), values, 0)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSR", "AIL", "RSA"])
def test_an_image_of_two_brightnesses_says_what_is_there_however_it_is_stored(
    orientation: str, tmp_path: Path
) -> None:
    """To the left the first class, to the right the second; beyond the image, blobs."""
    (x, y, z), affine = fine_grid()
    structure = (x**2 + y**2 + z**2 < 4).astype(np.uint8)
    light = box_of(np.where(x < 0, 100, 300), (25.0, 20.0, 30.0)).astype(np.int16)
    anatomy = label_map_anatomy(
        save(tmp_path / "label.nii.gz", structure, affine, orientation),
        (1,),
        save(tmp_path / "image.nii.gz", light, affine, orientation),
    )
    palette = Palette({1: 0.0}, {1: 0.0}, classes=(0.3, 0.9, *[0.0] * 6), blobs=(0.1,))
    image = render(anatomy, ImagePlan(RESOLUTIONS[0], palette)).image
    left, right, back = image[20:28, 26:34, 36:40], image[32:40, 26:34, 36:40], image[25:35, :4]
    for part, expected in ((left, 300), (right, 900), (back, 100)):
        assert np.median(part) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("removed", ["structure", "filled"])
def test_an_image_of_a_user_does_not_show_the_structure_that_is_removed(removed: str, tmp_path: Path) -> None:
    (x, y, _), affine = fine_grid()
    structure = (np.hypot(x, y) < 6).astype(np.uint8)
    light = np.where(structure, 900, 300).astype(np.int16)
    anatomy = label_map_anatomy(
        save(tmp_path / "label.nii.gz", structure, affine),
        (1,),
        save(tmp_path / "image.nii.gz", light, affine),
    )
    palette = Palette({1: 0.9}, {1: 0.0}, classes=(0.3, 0.9, *[0.0] * 6), blobs=(0.4,))
    whole, without = (
        render(anatomy, ImagePlan(RESOLUTIONS[0], palette, removed=what)) for what in ("nothing", removed)
    )
    radius = np.hypot(*(np.indices(whole.image.shape)[:2] - 29.5))
    inside, around = radius < 5, (radius > 8) & (radius < 20)
    assert np.median(whole.image[inside]) == 900
    assert np.median(without.image[inside]) == pytest.approx(400, rel=0.05), "blobs"
    assert np.median(without.image[around]) == pytest.approx(np.median(whole.image[around]), rel=0.01)
    assert without.image[radius < 20].max() < 700, "nor its rim"
    assert not without.share.any()


@pytest.mark.parametrize("pitch_deg", [0.0, 20.0])
@pytest.mark.parametrize("orientation", ["RAS", "PSR", "AIL", "RSA"])
def test_depths_in_an_image_are_those_in_the_box_around_what_it_shows(
    orientation: str, pitch_deg: float, tmp_path: Path
) -> None:
    _, affine = fine_grid()
    pitch = np.radians(pitch_deg)
    tipped = np.eye(4)
    tipped[1:3, 1:3] = [[np.cos(pitch), -np.sin(pitch)], [np.sin(pitch), np.cos(pitch)]]
    light = box_of(np.arange(137) + 1, (25.0, 10.0, 15.0)).astype(np.int16)
    files = (tmp_path / "label.nii.gz", tmp_path / "image.nii.gz")
    for file, values in zip(files, ((light > 0).astype(np.uint8), light), strict=True):
        save(file, values, tipped @ affine, orientation)
    anatomy = label_map_anatomy(files[0], (1,), files[1])
    front = 10 * np.cos(pitch) + 15 * np.sin(pitch)
    points = np.array([[0, 0, 0], [22, 0, 9], [0, 8, -9]], np.float32).T
    assert anatomy.depth_in_image_mm(points) == pytest.approx([front, 3, front - 8], abs=1e-3)


def test_values_of_an_atlas_may_be_of_any_size(tmp_path: Path) -> None:
    anatomy = ellipsoid((14.0, 9.0, 20.0))
    values = np.array([0, 65536, 614454277], np.int32)[anatomy.tissues.values]
    file = save(tmp_path / "atlas.nii.gz", values, anatomy.tissues.affine)
    drawn = render(label_map_anatomy(file, (614454277,)), ImagePlan(RESOLUTIONS[0], PALETTE))
    assert volume_mm3(drawn) == pytest.approx(4 / 3 * np.pi * 14 * 9 * 20, rel=0.01)
    around = drawn.image[5:10, 5:10, 5:10]
    assert set(np.unique(around)) == {300}


# The command


def write_label_maps(folder: Path) -> Path:
    folder.mkdir()
    anatomy = ellipsoid((8.0, 8.0, 25.0))
    values = anatomy.tissues.values[::2, ::2, ::2]
    affine = anatomy.tissues.affine @ np.diag([2, 2, 2, 1])
    nib.Nifti1Image(values, affine).to_filename(folder / "one.nii.gz")
    return folder


def test_the_command_writes_a_folder_that_convert_takes(tmp_path: Path) -> None:
    maps, bids = write_label_maps(tmp_path / "maps"), tmp_path / "bids"
    words = ["synthesise", "-i", str(maps), "-o", str(bids), "--structure", "2", "-n", "3", "-np", "1"]
    assert main(words) == 0
    report = convert(bids, 301, "Synthetic", raw_folder=tmp_path / "raw", num_test=0, num_validation=1)
    assert "3" in report.as_text()
    soft = sorted((tmp_path / "raw" / "Dataset301_Synthetic" / "softLabelsTr").glob("*.nii.gz"))
    assert len(soft) == 3
    values = nib.load(soft[0]).get_fdata()
    assert nib.load(soft[0]).get_data_dtype() == np.float32
    assert values.min() >= 0
    assert values.max() <= 1


def test_a_repeated_call_keeps_what_is_there_and_adds_what_is_missing(tmp_path: Path) -> None:
    maps, bids = write_label_maps(tmp_path / "maps"), tmp_path / "bids"
    synthesise(maps, bids, 2, structure=(2,), progress=False)
    first = {file: file.read_bytes() for file in bids.rglob("*.nii.gz")}
    lost = bids / "sub-0001" / "anat" / "sub-0001_synth.nii.gz"
    lost.unlink()
    synthesise(maps, bids, 3, structure=(2,), progress=False)
    again = {file: file.read_bytes() for file in bids.rglob("*.nii.gz")}
    assert len(again) == 6
    images = {file for file in first if "probseg" not in file.name}
    for file in images:
        before, after = (nib.Nifti1Image.from_bytes(_unzipped(d[file])).get_fdata() for d in (first, again))
        assert (before == after).all()


def _unzipped(content: bytes) -> bytes:
    import gzip

    return gzip.decompress(content)


def test_hidden_files_among_label_maps_are_passed_over(tmp_path: Path) -> None:
    """As macOS leaves them, `._one.nii.gz`, on disks of other systems."""
    maps, bids = write_label_maps(tmp_path / "maps"), tmp_path / "bids"
    (maps / "._one.nii.gz").write_bytes(b"no image")
    synthesise(maps, bids, 1, structure=(2,), progress=False)
    description = json.loads((bids / "dataset_description.json").read_text("utf-8"))
    assert description["Synthesis"]["sources"] == ["one.nii.gz"]


def test_another_seed_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    maps, bids = write_label_maps(tmp_path / "maps"), tmp_path / "bids"
    synthesise(maps, bids, 1, structure=(2,), progress=False)
    with pytest.raises(UserError, match="another synthesis \\(seed 0 there, 1 asked for\\)"):
        synthesise(maps, bids, 1, seed=1, structure=(2,), progress=False)
    description = json.loads((bids / "dataset_description.json").read_text("utf-8"))
    assert description["Synthesis"]["seed"] == 0


def test_a_folder_is_not_continued_from_label_maps_or_images_of_other_content(tmp_path: Path) -> None:
    """In the record, too: a folder of before there were hashes is not known to be of these files."""
    maps, images, bids = write_label_maps(tmp_path / "maps"), tmp_path / "images", tmp_path / "bids"
    _, affine = fine_grid(10)
    light = np.arange(41**3, dtype=np.int32).reshape(41, 41, 41)
    kept = save(images / "one.nii.gz", light, affine).read_bytes()
    options = {"structure": (2,), "without": 0.0, "progress": False}

    def refused(what: str, **changed: object) -> None:
        before = {file: file.read_bytes() for file in bids.rglob("*.*")}
        told = f"another synthesis \\(sha256 of {what} there and asked for differ\\): choose another folder"
        with pytest.raises(UserError, match=told):
            synthesise(maps, bids, 2, **options | {"images": images} | changed)
        assert {file: file.read_bytes() for file in bids.rglob("*.*")} == before

    synthesise(maps, bids, 1, images=images, **options)
    refused("image of one.nii.gz", images=None)
    save(images / "one.nii.gz", light[::-1], affine)
    refused("image of one.nii.gz")
    (images / "one.nii.gz").write_bytes(kept)
    synthesise(maps, bids, 1, images=images, **options)
    wider = ellipsoid((16.0, 16.0, 25.0)).tissues
    save(maps / "one.nii.gz", wider.values, wider.affine)
    refused("one.nii.gz")
    synthesise(maps, tmp_path / "anew", 1, images=images, **options)
    small, large = (
        nib.load(next(folder.rglob("*_probseg.nii.gz"))).get_fdata().sum()
        for folder in (bids, tmp_path / "anew")
    )
    assert large > 1.5 * small, "what this process has read before is not taken for what is there now"
    record = json.loads((bids / "dataset_description.json").read_text("utf-8"))
    del record["Synthesis"]["sha256"]
    (bids / "dataset_description.json").write_text(json.dumps(record), "utf-8")
    refused("one.nii.gz, image of one.nii.gz")


def test_a_folder_is_not_continued_from_another_template(tmp_path: Path) -> None:
    (x, y, _), affine = fine_grid(20)
    for name, radius in zip(PAM50_MAPS, (6, 9, 3, 0, 30), strict=True):
        save(tmp_path / "pam50" / f"{name}.nii.gz", (np.hypot(x, y) < radius).astype(np.float32), affine)
    synthesise(None, tmp_path / "bids", 1, pam50=tmp_path / "pam50", progress=False)
    save(tmp_path / "pam50" / "PAM50_gm.nii.gz", (np.hypot(x, y) < 2).astype(np.float32), affine)
    with pytest.raises(UserError, match=r"sha256 of PAM50 PAM50_gm.nii.gz there and asked for differ"):
        synthesise(None, tmp_path / "bids", 2, pam50=tmp_path / "pam50", progress=False)


def test_images_that_show_nothing_or_belong_to_no_label_map_are_told(tmp_path: Path) -> None:
    maps = write_label_maps(tmp_path / "maps")
    image = save(tmp_path / "images" / "one.nii.gz", np.zeros((9, 9, 9), np.int16), np.eye(4))
    options = {"images": image.parent, "structure": (2,), "progress": False}
    with pytest.raises(UserError, match=r"images.one.nii.gz: expected the image of one.nii.gz, found 0 in"):
        synthesise(maps, tmp_path / "bids", 1, **options)
    with pytest.raises(UserError, match=r"--images: expected label maps of the images \(-i\), found none"):
        synthesise(None, tmp_path / "bids", 1, phantom=True, **options)
    assert not (tmp_path / "bids").exists()


@pytest.mark.parametrize(
    ("structure", "message"),
    [((7,), "one.nii.gz: expected voxels of the structure, value 7, found labels 1, 2"), ((), "nothing")],
)
def test_what_cannot_be_drawn_is_told(tmp_path: Path, structure: tuple[int, ...], message: str) -> None:
    maps = write_label_maps(tmp_path / "maps") if structure else None
    with pytest.raises(UserError, match=message):
        synthesise(maps, tmp_path / "bids", 1, structure=structure, progress=False)
    assert not (tmp_path / "bids").exists()

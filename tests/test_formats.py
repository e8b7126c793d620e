"""Every image format that nnU-Net reads, with two labels that are nested: check, train, predict, evaluate."""

import json
import multiprocessing.dummy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import tifffile
import torch
from disc_dataset import (
    AXON,
    DIRECTION,
    FIBRE,
    SPACING_ZYX,
    WRITERS,
    Disc,
    DiscDataset,
    fractions,
    make_disc_dataset,
    small_disc_plans,
    some_discs,
)
from skimage.io import imread, imsave
from tiny_dataset import plan_and_preprocess, use

from nnunet_softseg.datasets.check import check
from nnunet_softseg.datasets.raw_dataset import soft_label_file
from nnunet_softseg.datasets.soft_label import find_reader, read_soft_label, stored_soft_label
from nnunet_softseg.errors import UserError
from nnunet_softseg.evaluation.evaluate import evaluate
from nnunet_softseg.inference.image_check import check_images
from nnunet_softseg.inference.network_image import read_image
from nnunet_softseg.inference.predict import predict
from nnunet_softseg.inference.simulation import simulate
from nnunet_softseg.io.formats import open_other, write_other
from nnunet_softseg.io.nifti import load_nifti
from nnunet_softseg.metrics.morphometry import csa
from nnunet_softseg.preprocessing.planning import SoftSegPlanner
from nnunet_softseg.preprocessing.preparation import open_soft_target, prepare
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings
from nnunet_softseg.training import variants
from nnunet_softseg.training.trainer import nnUNetTrainerSoftSeg
from nnunet_softseg.training.training_log import SoftSegLogger
from nnunet_softseg.training.variants import nnUNetTrainerSoftSegDemo

CPU = torch.device("cpu")
FLAT, DEEP = (1, 40, 44), (6, 40, 44)
FORMATS = {
    "png": (".png", FLAT, "2d", (32, 32)),
    "tif": (".tif", FLAT, "2d", (32, 32)),
    "tif 3-D": (".tif", DEEP, "3d_fullres", (4, 32, 32)),
    "mha": (".mha", DEEP, "3d_fullres", (4, 32, 32)),
    "nrrd": (".nrrd", DEEP, "3d_fullres", (4, 32, 32)),
    "mha 2-D": (".mha", FLAT, "2d", (32, 32)),
}
CASES = some_discs(3)


def ready(dataset: DiscDataset, configuration: str, patch: pytest.MonkeyPatch) -> None:
    """Plan and preprocess with nnU-Net's own planner; a loader in this process."""
    use(dataset, patch)
    patch.delenv("nnUNet_n_proc_DA", raising=False)
    plan_and_preprocess(dataset, configuration)
    patch.setenv("nnUNet_n_proc_DA", "0")


def quick_training(trainer: nnUNetTrainerSoftSeg, steps: int = 2) -> Path:
    """Train for a moment, with final validation in threads; return the folder of the model."""
    patch = pytest.MonkeyPatch()
    threads = SimpleNamespace(get_context=lambda _: multiprocessing.dummy)
    patch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.multiprocessing", threads)
    patch.setattr("nnunetv2.evaluation.evaluate_predictions.multiprocessing", threads)
    patch.setattr(SoftSegLogger, "plot_progress_png", lambda *_: None)  # takes seconds
    trainer.num_epochs = trainer.num_val_iterations_per_epoch = 1
    trainer.num_iterations_per_epoch = steps
    trainer.run_training()
    trainer.perform_actual_validation()
    patch.undo()
    return Path(trainer.output_folder_base)


def geometry(file: Path) -> Any:
    """Return what a file says of its grid, by the library of its format."""
    if file.suffix in (".mha", ".nrrd"):
        image = SimpleITK.ReadImage(str(file))
        return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()
    return imread(file).shape


@pytest.mark.parametrize("name", FORMATS)
def test_train_predict_evaluate(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending, shape, configuration, patch_size = FORMATS[name]
    dataset = make_disc_dataset(tmp_path / "nnunet", ending, CASES, shape)
    ready(dataset, configuration, monkeypatch)
    report = check(301, 0, progress=False)
    assert report.errors == ()
    assert report.configuration == configuration
    plans = small_disc_plans(dataset, configuration, patch_size)
    trainer = nnUNetTrainerSoftSegDemo(plans, configuration, 0, dataset.dataset_json, CPU)
    model = quick_training(trainer)

    # the fixed patch only where the images tell their orientation, said once, the same for prediction
    oriented = name in ("mha", "nrrd")
    saved = json.loads((model / "plans.json").read_text())[PLANS_KEY]
    assert (saved["si_axis"] is not None) == oriented
    log = next((model / "fold_0").glob("training_log*.txt")).read_text()
    assert log.count("patches: ") == 1
    assert ("anywhere, as nnU-Net draws them" in log) != oriented
    assert (trainer.oversample_foreground_percent == 1) == oriented
    # of many structures in one image each has its own height; one scale per patch would not see it
    assert (saved["output_scales"]["axon"]["output_scale"] == "fixed") or oriented

    # preprocessed as geometry says, to the precision of float16
    folder = next(dataset.preprocessed.glob("*_soft"))
    for case in dataset.cases[:1]:
        target = open_soft_target(folder, case)[...]
        for channel, label in enumerate((FIBRE, AXON)):
            total = float(target[channel].astype(np.float64).sum()) * (
                dataset.truth[case][label].size / target[channel].size
            )
            assert total == pytest.approx(dataset.truth[case][label].sum(), rel=2e-3)

    summary = json.loads((model / "fold_0/validation/summary_soft.json").read_text())
    assert {*summary["mean"]} == {"fibre", "axon"}

    images = dataset.raw / "imagesTr"
    out = tmp_path / "out"
    predicted = predict(images, out, model, device="cpu", progress=False)
    assert not predicted.failed
    assert len(predicted.predicted) == len(CASES)
    assert (out / "qc/index.html").is_file()
    for case in dataset.cases:
        assert geometry(out / f"{case}{ending}") == geometry(dataset.image(case))
        for label in (FIBRE, AXON):
            soft = soft_label_file(out / "soft", case, label)
            assert soft.name == f"{case}_{label:04d}{'.tif' if ending == '.png' else ending}"
            assert geometry(soft) == geometry(dataset.image(case))
            values = stored_soft_label(soft)
            assert values.shape == shape[::-1]
            assert 0 <= values.min() <= values.max() <= 1
        label_map = load_nifti(out / f"{case}{ending}").get_fdata()
        axon, fibre = (
            stored_soft_label(soft_label_file(out / "soft", case, label)) for label in (AXON, FIBRE)
        )
        np.testing.assert_array_equal(label_map, np.where(axon > 0.5, 2, np.where(fibre > 0.5, 1, 0)))

    # the truth against itself is perfect, the prediction is measured
    table = evaluate(
        out, dataset.raw / "softLabelsTr", tmp_path / "evaluation", num_processes=0, progress=False
    )
    assert len(table.cases) == 2 * len(CASES)
    same = evaluate(
        dataset.raw / "softLabelsTr",
        dataset.raw / "softLabelsTr",
        tmp_path / "same",
        num_processes=0,
        progress=False,
    )
    assert same.cases["soft_dice"].min() == pytest.approx(1, abs=1e-6)
    voxel = (
        1.0
        if ending == ".png" or name == "tif"
        else SPACING_ZYX[1] * SPACING_ZYX[2] * (SPACING_ZYX[0] if shape[0] > 1 else 1)
    )
    stated = json.loads((out / "softseg.json").read_text())["cases"][dataset.cases[0]]["labels"]["fibre"]
    total = stored_soft_label(soft_label_file(out / "soft", dataset.cases[0], FIBRE)).sum(dtype=np.float64)
    flags = {
        flag
        for case in json.loads((out / "softseg.json").read_text())["cases"].values()
        for flag in case["flags"]
    }
    # of a network that has hardly learned, volumes may lack slices; a picture cannot
    assert not flags & ({"header"} if oriented else {"few slices", "header"})
    assert stated["soft_volume_mm3"] == pytest.approx(total * voxel, rel=1e-4, abs=2e-3)


@pytest.fixture(scope="module")
def micrographs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiscDataset]:
    """PNG images, preprocessed; nnU-Net's folders are those of the dataset."""
    patch = pytest.MonkeyPatch()
    dataset = make_disc_dataset(tmp_path_factory.mktemp("micrographs"), ".png", CASES)
    ready(dataset, "2d", patch)
    yield dataset
    patch.undo()


TRAINERS = [
    trainer
    for trainer in vars(variants).values()
    if isinstance(trainer, type) and issubclass(trainer, nnUNetTrainerSoftSeg)
]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_takes_2d(
    trainer: type[nnUNetTrainerSoftSeg],
    micrographs: DiscDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    plans = small_disc_plans(micrographs, "2d", (32, 32))
    made = trainer(plans, "2d", 0, micrographs.dataset_json, CPU)
    made.on_train_start()
    batch = next(made.dataloader_train)
    assert batch["data"].shape[:2] == (2, 1)
    assert batch["data"].ndim == 4
    assert np.isfinite(made.train_step(batch)["loss"])


def test_2d_of_3d_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of NIfTI images, with the default trainer: it neither refuses them nor crops."""
    dataset = make_disc_dataset(tmp_path / "nnunet", ".nii.gz", CASES, DEEP)
    ready(dataset, "2d", monkeypatch)
    plans = small_disc_plans(dataset, "2d", (32, 32))
    model = quick_training(nnUNetTrainerSoftSeg(plans, "2d", "all", dataset.dataset_json, CPU))
    assert json.loads((model / "plans.json").read_text())[PLANS_KEY]["si_axis"] is None
    out = tmp_path / "out"
    assert not predict(dataset.image("img0"), out, model, device="cpu", progress=False).failed
    soft = load_nifti(out / "soft/img0_0001.nii.gz")
    np.testing.assert_array_equal(soft.affine, load_nifti(dataset.image("img0")).affine)
    assert soft.shape == DEEP[::-1]


def test_a_folder_of_soft_maps_serves_as_soft_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PNG images with the float TIFF of a prediction, three axes with their spacing beside them."""
    dataset = make_disc_dataset(tmp_path / "nnunet", ".png", CASES, soft_ending=".tif")
    use(dataset, monkeypatch)
    assert check(301, 0, progress=False).errors == ()
    write_other(tmp_path / "a_0001.tif", np.ones((2, 3, 5), np.float32), {"spacing": SPACING_ZYX})
    (tmp_path / "a.json").write_text(json.dumps({"spacing": SPACING_ZYX}))
    assert open_other(tmp_path / "a_0001.tif").header.get_zooms() == pytest.approx(SPACING_ZYX[::-1])


# Soft labels, exact to their storage


@pytest.mark.parametrize("soft_ending", [".png", ".tif", ".nii.gz"])
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_soft_labels_of_pictures_are_exact(ending: str, soft_ending: str, tmp_path: Path) -> None:
    dataset = make_disc_dataset(tmp_path, ending, {"a": CASES["img0"]}, soft_ending=soft_ending)
    label, _ = read_soft_label(dataset.soft_label("a", AXON), find_reader("NaturalImage2DIO"))
    expected = dataset.truth["a"][AXON]
    if soft_ending == ".png":
        expected = (np.round(expected * 65535) / np.float32(65535)).astype(np.float32)
        np.testing.assert_array_equal(np.round(label * 65535), imread(dataset.soft_label("a", AXON))[None])
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("soft_ending", [".mha", ".nrrd", ".nii.gz"])
@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient"])
def test_soft_labels_of_itk_images_are_exact_and_on_their_grid(
    reader: str, soft_ending: str, tmp_path: Path
) -> None:
    """Against SimpleITK: the label written and read in any format lies as its image, unknown voxels too."""
    values = np.random.default_rng(0).random((5, 6, 7), dtype=np.float32)
    values[1, 2, 3] = np.nan
    WRITERS[".mha"](tmp_path / "image.mha", values)
    if soft_ending == ".nii.gz":
        SimpleITK.WriteImage(
            SimpleITK.ReadImage(str(tmp_path / "image.mha")), str(tmp_path / "a_0001.nii.gz")
        )
    else:
        WRITERS[soft_ending](tmp_path / f"a_0001{soft_ending}", values)
    made = find_reader(reader)
    label, _ = read_soft_label(tmp_path / f"a_0001{soft_ending}", made)
    np.testing.assert_array_equal(label, made.read_images([str(tmp_path / "image.mha")])[0][0])


def test_an_image_of_itk_lies_where_simpleitk_says(tmp_path: Path) -> None:
    WRITERS[".nrrd"](tmp_path / "a.nrrd", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    opened, image = open_other(tmp_path / "a.nrrd"), SimpleITK.ReadImage(str(tmp_path / "a.nrrd"))
    for voxel in ((0, 0, 0), (3, 2, 1), (1, 0, 1)):
        assert opened.get_fdata()[voxel] == image[voxel]
        lps = image.TransformIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose((opened.affine @ [*voxel, 1])[:3], np.array(lps) * [-1, -1, 1], atol=1e-5)
    assert image.GetDirection() == pytest.approx(DIRECTION)


# What is refused or warned of


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiscDataset:
    dataset = make_disc_dataset(tmp_path / "nnunet", ".png", {"a": CASES["img0"], "b": CASES["img1"]})
    use(dataset, monkeypatch)
    return dataset


def said(dataset: DiscDataset, severity: str = "errors") -> str:
    return "\n".join(map(str, getattr(check(301, 0, progress=False), severity)))


@pytest.mark.parametrize(
    ("severity", "direction"),
    [("warnings", (1, 0, 0, 0, 1, 0, 0, 0, 1)), ("errors", (1, 0, 0, 0, 0, 1, 0, 1, 0))],
)
def test_the_remedy_for_mixed_orientations_works(
    severity: str, direction: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image of three is stored turned, or with S-I along another axis."""
    dataset = make_disc_dataset(tmp_path, ".nrrd", CASES, DEEP)
    case = dataset.cases[0]
    for file in (dataset.image(case), dataset.label_map(case), *map(dataset.soft_label, [case] * 2, (1, 2))):
        image = SimpleITK.ReadImage(str(file))
        image.SetDirection(direction)
        SimpleITK.WriteImage(image, str(file))
    ready(dataset, "3d_fullres", monkeypatch)
    advice = re.compile(r'set ("overwrite_image_reader_writer"): ("\w+") in dataset.json')
    (remedy,) = advice.finditer(said(dataset, severity))
    if severity == "errors":
        with pytest.raises(UserError, match=f"mixed orientations.*{re.escape(remedy[0])}"):
            prepare(301, "3d_fullres", num_processes=0, progress=False)
        with pytest.raises(UserError, match=f"mixed orientations.*{re.escape(remedy[0])}"):
            SoftSegPlanner(301).plan_experiment()
    changed = {**dataset.dataset_json, json.loads(remedy[1]): json.loads(remedy[2])}
    (dataset.raw / "dataset.json").write_text(json.dumps(changed))
    assert said(dataset) == ""
    assert "overwrite_image_reader_writer" not in said(dataset, "warnings")
    ready(dataset, "3d_fullres", monkeypatch)
    assert len(prepare(301, "3d_fullres", num_processes=0, progress=False).cases) == len(CASES)


def test_png_with_8_bits_is_accepted_with_one_warning(pictures: DiscDataset) -> None:
    for case in pictures.cases:
        values = np.round(pictures.truth[case][AXON][0] * 255).astype(np.uint8)
        imsave(pictures.soft_label(case, AXON), values, check_contrast=False)
    assert said(pictures) == ""
    assert said(pictures, "warnings").count("256 levels") == 1
    assert "2 soft labels have 256 levels (softLabelsTr/a_0002.png" in said(pictures, "warnings")
    label, _ = read_soft_label(pictures.soft_label("a", AXON), find_reader("NaturalImage2DIO"))
    np.testing.assert_allclose(label, pictures.truth["a"][AXON], atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_half_in_a_png_is_not_above_a_half(pictures: DiscDataset, dtype: type[np.integer[Any]]) -> None:
    """The mean of two raters, one of whom found no fibre below the middle: stored as 32768 or 128."""
    file, label_map = pictures.soft_label("a", FIBRE), pictures.label_map("a")
    fibre = (pictures.truth["a"][FIBRE][0] > 0.5).astype(np.float64)
    below = np.arange(len(fibre))[:, None] >= 20

    def write(lower: float) -> None:
        shares = np.where(below, lower * fibre, fibre)
        imsave(file, np.round(shares * np.iinfo(dtype).max).astype(dtype), check_contrast=False)

    write(0.5)
    imsave(
        label_map, np.where(below & (imread(label_map) == FIBRE), 0, imread(label_map)), check_contrast=False
    )
    assert stored_soft_label(file)[fibre.T[..., None] > 0].min() > 0.5
    assert said(pictures) == ""
    write(0.52)
    assert "labelsTr/a.png: label map disagrees with its soft label" in said(pictures)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_of_0_and_1_in_a_png_is_no_fraction(pictures: DiscDataset, dtype: type) -> None:
    imsave(
        pictures.soft_label("a", AXON),
        (pictures.truth["a"][AXON][0] > 0.5).astype(dtype),
        check_contrast=False,
    )
    assert "a_0002.png: hardly above 0 anywhere: expected fractions times 65535" in said(pictures)


def test_a_soft_label_in_colours_is_refused(pictures: DiscDataset) -> None:
    imsave(pictures.soft_label("a", AXON), np.zeros((40, 44, 3), np.uint8), check_contrast=False)
    message = (
        r"a_0002.png: is in colours: expected a grey picture, found 3 colours: write one value per pixel"
    )
    assert message in said(pictures)
    with pytest.raises(UserError, match=message):
        read_soft_label(pictures.soft_label("a", AXON), find_reader("NaturalImage2DIO"))


def test_an_image_in_colours_has_three_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: DiscDataset
) -> None:
    for case in pictures.cases:
        grey = imread(pictures.image(case))
        imsave(pictures.image(case), np.stack([grey, grey // 2, 255 - grey], axis=2), check_contrast=False)
    message = (
        "expected 1, as channel_names, found 3: in colours: write it in grey, or all images in colours and 3"
    )
    assert f"wrong number of channels: {message} channel_names" in said(pictures)
    content = {**pictures.dataset_json, "channel_names": {"0": "R", "1": "G", "2": "B"}}
    (pictures.raw / "dataset.json").write_text(json.dumps(content))
    assert said(pictures) == ""
    ready(pictures, "2d", monkeypatch)
    plans = small_disc_plans(pictures, "2d", (32, 32))
    model = quick_training(nnUNetTrainerSoftSegDemo(plans, "2d", "all", pictures.dataset_json, CPU), 1)
    report = predict(pictures.raw / "imagesTr", tmp_path / "out", model, device="cpu", progress=False)
    assert sorted(report.predicted) == ["a", "b"]
    checked = check_images(pictures.raw / "imagesTr", model, progress=False)
    assert checked.errors == ()


def test_a_picture_in_colours_is_refused_by_a_model_of_grey_ones(tmp_path: Path) -> None:
    file = tmp_path / "a_0000.png"
    imsave(file, np.full((8, 8, 3), 7, np.uint8), check_contrast=False)
    plans = SimpleNamespace(image_reader_writer_class=find_reader("NaturalImage2DIO").__class__)
    grey = SimpleNamespace(patch_size=[8, 8], normalization_schemes=["ZScoreNormalization"])
    with pytest.raises(UserError, match="expected 1, as in training, found 3: write it in grey"):
        read_image([str(file)], plans, grey)


def test_tiff_without_spacing_counts_as_1_mm_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_disc_dataset(tmp_path, ".tif", {"a": CASES["img0"]}, DEEP, with_spacing=False)
    use(dataset, monkeypatch)
    assert "a_0000.tif" not in said(dataset)  # there is one case only, which no fold can be trained on
    assert "imagesTr/a_0000.tif: has no voxel sizes: expected a file <case>.json" in said(dataset, "warnings")
    (dataset.raw / "imagesTr/a.json").write_text(json.dumps({"spacing": SPACING_ZYX}))
    assert "voxel sizes" not in said(dataset, "warnings")


def test_labels_of_other_shapes_formats_and_broken_files_are_named(pictures: DiscDataset) -> None:
    imsave(pictures.soft_label("a", AXON), np.zeros((40, 40), np.uint16), check_contrast=False)
    assert "a_0002.png: shape differs from that of the image" in said(pictures)
    content = pictures.soft_label("b", AXON).read_bytes()
    pictures.soft_label("b", AXON).write_bytes(content[: len(content) // 2])
    assert "b_0002.png: cannot be opened: expected a whole PNG image" in said(pictures)
    pictures.soft_label("a", FIBRE).unlink()
    WRITERS[".mha"](pictures.soft_label("a", FIBRE).with_suffix(".mha"), pictures.truth["a"][FIBRE])
    assert "a_0001.mha: not a soft label of images that NaturalImage2DIO reads" in said(pictures)


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".tif"])
def test_half_a_file_is_named(ending: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    WRITERS[ending](tmp_path / f"a{ending}", random.random((5, 40, 44), dtype=np.float32))
    content = (tmp_path / f"a{ending}").read_bytes()
    (tmp_path / f"a{ending}").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        UserError, match=f"a{ending}: cannot be opened: expected a whole {ending[1:].upper()}"
    ):
        load_nifti(tmp_path / f"a{ending}")


def test_a_reader_that_does_not_read_the_format_is_named(pictures: DiscDataset) -> None:
    content = {**pictures.dataset_json, "overwrite_image_reader_writer": "NibabelIO"}
    (pictures.raw / "dataset.json").write_text(json.dumps(content))
    assert "not a reader of .png images: expected NaturalImage2DIO, found 'NibabelIO'" in said(pictures)


def test_csa_refuses_pictures(pictures: DiscDataset) -> None:
    with pytest.raises(UserError, match=r"expected maps that say where S-I is, found .*a_0001.png"):
        csa(pictures.raw / "softLabelsTr")


# The law, in two dimensions


def g_ratio(folder: Path, case: str) -> float:
    """Return sqrt(area of the axon / area of the fibre), areas as sums of the maps."""
    axon, fibre = (
        float(stored_soft_label(soft_label_file(folder, case, label)).sum(dtype=np.float64))
        for label in (AXON, FIBRE)
    )
    return float(np.sqrt(axon / fibre))


def discs_of(sizes: Sequence[tuple[float, float]]) -> dict[str, Sequence[Disc]]:
    return {
        f"img{at}": [Disc(19.3 + 0.21 * at, 22.7 - 0.13 * at, fibre, g * fibre)]
        for at, (fibre, g) in enumerate(sizes)
    }


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_g_of_discs_through_the_output_stage_is_that_of_the_radii(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soft labels in place of the raw output, through output scale, clean-up and export to files."""
    sizes = [(14.0, 0.8), (9.0, 0.7), (6.0, 0.6), (4.0, 0.75), (3.0, 0.5), (11.0, 0.65)]
    dataset = make_disc_dataset(tmp_path / "nnunet", ending, discs_of(sizes))
    ready(dataset, "2d", monkeypatch)
    simulate(
        301, "2d", tmp_path / "out", trainer="T", settings=SoftSegSettings(), num_processes=0, progress=False
    )
    for (_, g), case in zip(sizes, dataset.cases, strict=True):
        assert abs(g_ratio(tmp_path / "out/soft", case) - g) < 0.001
        planes = fractions(FLAT[1:], discs_of(sizes)[case])
        for label, plane in planes.items():
            written = stored_soft_label(soft_label_file(tmp_path / "out/soft", case, label))[..., 0].T
            np.testing.assert_allclose(written, plane, atol=1e-3)


def test_the_discs_are_those_of_geometry() -> None:
    """Sums are pi r^2."""
    planes = fractions((40, 44), [Disc(20.3, 21.9, 12.5, 8.1)])
    assert planes[FIBRE].sum(dtype=np.float64) == pytest.approx(np.pi * 12.5**2, rel=3e-5)
    assert planes[AXON].sum(dtype=np.float64) == pytest.approx(np.pi * 8.1**2, rel=3e-5)


def test_images_of_a_format_hold_what_their_libraries_wrote(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    np.testing.assert_array_equal(open_other(tmp_path / "a.tif").get_fdata(dtype=np.float32), values.T)
    imsave(tmp_path / "b.png", np.round(values[0] * 65535).astype(np.uint16), check_contrast=False)
    np.testing.assert_array_equal(
        np.asarray(open_other(tmp_path / "b.png").dataobj)[..., 0].T, np.round(values[0] * 65535)
    )
    imsave(tmp_path / "c.bmp", np.round(values[0] * 255).astype(np.uint8), check_contrast=False)
    np.testing.assert_array_equal(
        np.asarray(open_other(tmp_path / "c.bmp").dataobj)[..., 0].T, np.round(values[0] * 255)
    )
    geometry = {
        "spacing": (1.0, 2.0, 3.0),
        "origin": (0.0, 0.0, 0.0),
        "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    }
    write_other(tmp_path / "d.gipl", values, {"sitk_stuff": geometry})
    assert isinstance(load_nifti(tmp_path / "d.gipl"), nib.Nifti1Image)
    np.testing.assert_array_equal(open_other(tmp_path / "d.gipl").get_fdata(dtype=np.float32), values.T)
    assert open_other(tmp_path / "d.gipl").header.get_zooms() == (1, 2, 3)

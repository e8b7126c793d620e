"""`nnunet-softseg predict`: which images, which model, the stock command's files, and what goes wrong."""

import json
import multiprocessing
import multiprocessing.process
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from grid_plans import vanilla_plans
from hypothesis import given
from hypothesis import strategies as st
from tiny_dataset import affine_of, save_nifti, soft_blob

from nnunet_softseg import cli
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference import export as map_export
from nnunet_softseg.inference import predict as command
from nnunet_softseg.inference.nnunet_patches import images_of_folder
from nnunet_softseg.inference.predict import (
    PredictionReport,
    explain_missing_model,
    find_cases,
    predict,
)
from nnunet_softseg.inference.trained_model import find_folds
from nnunet_softseg.io.case_files import RUN
from nnunet_softseg.preprocessing.model_plans import soft_plans, version_warning, versions
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings

TRAINER = "nnUNetTrainerSoftSeg"
FOLDER = f"{TRAINER}__nnUNetPlans__3d_fullres"
DATASET_JSON = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "cord": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
    "overwrite_image_reader_writer": "NibabelIOWithReorient",
}
SHAPE = (14, 18, 24)


def write_model(folder: Path, folds: tuple[str, ...] = ("0",)) -> Path:
    """A model of ours with random weights, one seed per fold."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_softseg.training.trainer import nnUNetTrainerSoftSeg

    plans = soft_plans(vanilla_plans(), TRAINER, SoftSegSettings())
    plans[PLANS_KEY].update(si_axis=0, orientation="SAR")
    manager = PlansManager(plans)
    for seed, fold in enumerate(folds):
        torch.manual_seed(seed)
        network = nnUNetTrainerSoftSeg.build_network_architecture(
            manager, manager.get_configuration("3d_fullres"), 1, 1, False
        )
        (folder / f"fold_{fold}").mkdir(parents=True)
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": TRAINER,
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": None,
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    return folder


@pytest.fixture(autouse=True, scope="module")
def _without_pictures() -> Iterator[None]:
    """They have tests of their own (test_predictions_page.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNUNET_SOFTSEG_NO_QC", "1")
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "Dataset901_Tiny" / FOLDER)


def write_image(file: Path, seed: int = 0) -> Path:
    image = np.random.default_rng(seed).normal(100, 10, SHAPE)
    image += 200 * soft_blob(SHAPE, [7 + seed % 2, 9, 12], 4)
    save_nifti(file, image.astype(np.float32), affine_of("LAS", (1.1, 0.9, 1.0)))
    return file


CASES = ("sub-01_T1w", "sub-01_T2w", "sub-02_T2w")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed, case in enumerate(CASES):
        write_image(folder / f"{case}_0000.nii.gz", seed)
    return folder


@pytest.fixture(scope="module")
def predicted(images: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("predicted") / "out"
    report = predict(images, output, model, progress=False)
    assert report.predicted == list(CASES)
    return output


def maps(folder: Path) -> dict[str, bytes]:
    """The bytes of every map, by its path."""
    return {
        str(file.relative_to(folder)): nib.load(file).dataobj[:].tobytes()
        for file in sorted(folder.rglob("[!.]*.nii.gz"))
    }


def softseg_json(folder: Path) -> dict[str, Any]:
    """The report, without the times."""
    report = json.loads((folder / "softseg.json").read_text())
    for case in report["cases"].values():
        assert set(case.pop("seconds")) == {"preprocess", "forward", "export"}
        case.get("localiser", {}).pop("seconds", None)
    return report


# The same files as the stock command


def stock_predict(model: Path, images: Path, output: Path, processes: int = 2) -> Path:
    """What nnUNetv2_predict -npp 2 -nps 2 does after reading its arguments."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    output.mkdir(exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(multiprocessing.cpu_count())  # the last bits of a sum depend on it
    try:
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), (0,))
        predictor.predict_from_files(
            str(images),
            str(output),
            num_processes_preprocessing=processes,
            num_processes_segmentation_export=processes,
        )
    finally:
        torch.set_num_threads(threads)
    return output


def test_the_files_are_those_of_the_stock_command(
    model: Path, images: Path, predicted: Path, tmp_path: Path
) -> None:
    stock = stock_predict(model, images, tmp_path / "stock")
    assert maps(predicted) == maps(stock)
    assert softseg_json(predicted) == softseg_json(stock)
    assert sorted(maps(stock)) == sorted(
        [*(f"{case}.nii.gz" for case in CASES), *(f"soft/{case}_0001.nii.gz" for case in CASES)]
    )
    for file in stock.rglob("*.nii.gz"):
        assert nib.load(file).header == nib.load(predicted / file.relative_to(stock)).header
        assert np.asarray(nib.load(file).dataobj).any()  # random weights, but something is there
    assert json.loads((predicted / "plans.json").read_text()) == json.loads(
        (stock / "plans.json").read_text()
    )


def test_both_ways_end_with_the_same_summary_and_page_on_a_repeated_call_too(
    model: Path, images: Path, predicted: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.delenv("NNUNET_SOFTSEG_NO_QC")
    stock = stock_predict(model, images, tmp_path / "stock")
    printed = capsys.readouterr().out
    shutil.copytree(predicted, tmp_path / "out")
    report = predict(images, tmp_path / "out", model, progress=False)
    assert report.kept == list(CASES)
    *summary, page = report.summary.splitlines()
    assert summary[0].startswith("3 cases, ")
    assert page == f"pictures of all, flagged first: {tmp_path / 'out' / 'qc' / 'index.html'}"
    assert printed.endswith("\n".join([*summary, page.replace("/out/", "/stock/"), ""]))
    for folder in (stock, tmp_path / "out"):
        assert {file.stem for file in (folder / "qc").glob("*.webp")} == set(CASES)
    assert predict(images, tmp_path / "out", model, no_qc=True, progress=False).summary == "\n".join(summary)


def test_neither_way_starts_a_process(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would import torch and nnU-Net again."""

    def refuse(_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    stock_predict(model, images, tmp_path / "stock")
    assert not predict(images, tmp_path / "out", model, progress=False).failed


@pytest.mark.parametrize("num_threads", [1, 5])
def test_runs_and_numbers_of_threads_give_the_same_bits(
    model: Path, images: Path, predicted: Path, tmp_path: Path, num_threads: int
) -> None:
    torch_threads = torch.get_num_threads()
    predict(images, tmp_path, model, num_threads=num_threads, progress=False)
    assert maps(tmp_path) == maps(predicted)
    assert torch.get_num_threads() == torch_threads


def test_folds_are_averaged_and_all_are_found(images: Path, tmp_path: Path) -> None:
    """All in one box: else the first fold decides where the others look, and each alone by itself."""
    model = write_model(tmp_path / FOLDER, ("0", "1"))
    image = images / f"{CASES[0]}_0000.nii.gz"
    plateaus = []
    for folds in (None, (0,), (1,)):
        output = tmp_path / f"folds-{folds}"
        predict(image, output, model, folds=folds, localize="never", progress=False)
        plateaus.append(softseg_json(output)["cases"][CASES[0]]["labels"]["cord"]["raw_plateau"])
    both, first, second = plateaus
    assert both == [*first, *second]
    assert first != second


def test_each_case_is_told_when_its_files_are_there_as_the_report_tells_it(
    model: Path, images: Path, predicted: Path, tmp_path: Path
) -> None:
    told = {}

    def on_written(case: str, entry: Any) -> None:
        assert (tmp_path / f"{case}.nii.gz").read_bytes() == (predicted / f"{case}.nii.gz").read_bytes()
        told[case] = json.loads(json.dumps(entry))

    predict(images, tmp_path, model, on_written=on_written, progress=False)
    assert told == json.loads((tmp_path / "softseg.json").read_text())["cases"]


# Going on, and what fails


def test_what_is_done_is_kept_and_the_rest_is_predicted(
    model: Path, images: Path, predicted: Path, tmp_path: Path
) -> None:
    """A case counts by its label map, which is written last, and its soft map."""
    output = tmp_path / "out"
    shutil.copytree(predicted, output)
    (output / f"{CASES[0]}.nii.gz").unlink()
    (output / "soft" / f"{CASES[1]}_0001.nii.gz").unlink()
    stamp = (output / f"{CASES[2]}.nii.gz").stat().st_mtime_ns
    report = predict(images, output, model, progress=False)
    assert (report.predicted, report.kept) == ([CASES[0], CASES[1]], [CASES[2]])
    assert (output / f"{CASES[2]}.nii.gz").stat().st_mtime_ns == stamp
    assert maps(output) == maps(predicted)
    assert softseg_json(output) == softseg_json(predicted)
    assert predict(images, output, model, overwrite=True, progress=False).predicted == list(CASES)


def test_an_interrupted_call_leaves_whole_files_and_is_continued(
    model: Path, images: Path, predicted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = command._NnunetModel.soft_maps, []

    def interrupt_third(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(command._NnunetModel, "soft_maps", interrupt_third)
        with pytest.raises(KeyboardInterrupt):
            predict(images, tmp_path, model, num_threads=1, progress=False)
    done = maps(tmp_path)
    assert done.items() <= maps(predicted).items()
    report = predict(images, tmp_path, model, progress=False)
    assert CASES[2] in report.predicted
    assert sorted(report.predicted + report.kept) == list(CASES)
    assert maps(tmp_path) == maps(predicted)


def interrupt(*arguments: Any) -> Any:
    raise KeyboardInterrupt


def test_overwriting_that_is_cut_off_is_continued_and_mixes_nothing(
    model: Path, images: Path, predicted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not overwritten yet was made by other options than the folder says."""
    shutil.copytree(predicted, tmp_path / "out")
    call: dict[str, Any] = {"localize": "never", "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(command._NnunetModel, "soft_maps", interrupt)
        with pytest.raises(KeyboardInterrupt):
            predict(images, tmp_path / "out", model, overwrite=True, **call)
    report = predict(images, tmp_path / "out", model, **call)
    assert (report.predicted, report.kept) == (list(CASES), [])


@pytest.fixture
def copied(images: Path, predicted: Path, tmp_path: Path) -> Path:
    """Return a folder with copies of images and predictions, to be changed."""
    shutil.copytree(images, tmp_path / "images")
    shutil.copytree(predicted, tmp_path / "out")
    return tmp_path


def test_overwriting_a_few_keeps_nothing_of_other_options_for_the_rest(
    model: Path, images: Path, copied: Path
) -> None:
    """And of an image that cannot be predicted any more, no map of other options is left."""
    some, output = copied / "images", copied / "out"
    (some / f"{CASES[0]}_0000.nii.gz").write_bytes(b"no image")
    call: dict[str, Any] = {"localize": "never", "progress": False}
    report = predict(some, output, model, only=CASES[:2], overwrite=True, **call)
    assert (report.predicted, list(report.failed)) == ([CASES[1]], [CASES[0]])
    assert not [name for name in maps(output) if CASES[0] in name]
    report = predict(images, output, model, **call)
    assert (report.predicted, report.kept) == ([CASES[0], CASES[2]], [CASES[1]])


def test_a_case_whose_image_was_written_again_is_predicted_again(model: Path, copied: Path) -> None:
    """Repaired, as the flag of a doubtful header asks for."""
    repaired, output = copied / "images", copied / "out"
    image = nib.load(repaired / f"{CASES[1]}_0000.nii.gz")
    moved = nib.Nifti1Image(np.asarray(image.dataobj), affine_of("LAS", (1.1, 0.9, 2.0)))
    nib.save(moved, repaired / f"{CASES[1]}_0000.nii.gz")
    report = predict(repaired, output, model, progress=False)
    assert (report.predicted, report.kept) == ([CASES[1]], [CASES[0], CASES[2]])
    written = nib.load(output / "soft" / f"{CASES[1]}_0001.nii.gz")
    np.testing.assert_allclose(written.affine, moved.affine)


def test_an_image_of_the_same_name_elsewhere_is_another(model: Path, tmp_path: Path) -> None:
    """A file T2w.nii.gz in the folder of each person: all older than the predictions."""
    larger = np.pad(nib.load(write_image(tmp_path / "b.nii.gz", 1)).get_fdata(), ((0, 6), (0, 0), (0, 0)))
    for person, image in (("sub-01", write_image(tmp_path / "a.nii.gz")), ("sub-02", tmp_path / "b.nii.gz")):
        (tmp_path / person).mkdir()
        shutil.move(image, tmp_path / person / "T2w.nii.gz")
    save_nifti(tmp_path / "sub-02" / "T2w.nii.gz", larger.astype(np.float32), affine_of("LAS", (1, 1, 1)))
    for person in ("sub-01", "sub-02"):
        os.utime(tmp_path / person / "T2w.nii.gz", (1e9, 1e9))
        report = predict(tmp_path / person / "T2w.nii.gz", tmp_path / "out", model, progress=False)
        assert report.predicted == ["T2w"]
    assert nib.load(tmp_path / "out" / "soft" / "T2w_0001.nii.gz").shape == larger.shape
    assert predict(tmp_path / "sub-02" / "T2w.nii.gz", tmp_path / "out", model, progress=False).kept == [
        "T2w"
    ]


def test_overwriting_that_fails_at_the_last_file_is_done_again(
    model: Path, images: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, call = copied / "out", {"largest_piece": True, "progress": False}

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(map_export, "write_segmentation", full)
        assert len(predict(images, output, model, overwrite=True, **call).failed) == len(CASES)
    report = predict(images, output, model, **call)
    assert (report.predicted, report.kept) == (list(CASES), [])


def test_of_a_case_that_fails_the_report_and_other_labels_forget_what_was_before(
    model: Path, copied: Path
) -> None:
    output = copied / "out"
    (copied / "images" / f"{CASES[0]}_0000.nii.gz").write_bytes(b"no image")
    predict(copied / "images", output, model, progress=False)
    assert list(softseg_json(output)["cases"]) == list(CASES[1:])
    of_another_label = output / "soft" / f"{CASES[1]}_0002.nii.gz"
    shutil.copy(output / "soft" / f"{CASES[1]}_0001.nii.gz", of_another_label)
    predict(copied / "images", output, model, localize="never", overwrite=True, progress=False)
    assert not of_another_label.exists()


def test_a_copy_of_a_fold_is_no_fold(images: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / FOLDER)
    for name in ("fold_0_old", "fold_0_1"):
        shutil.copytree(model / "fold_0", model / name)
    assert find_folds(model, None, "checkpoint_final.pth") == ("0",)
    with pytest.raises(UserError, match=r"expected fold_0_old/checkpoint_final\.pth, found"):
        find_folds(model, ["0_old"], "checkpoint_final.pth")
    report = predict(images / f"{CASES[0]}_0000.nii.gz", tmp_path / "out", model, progress=False)
    assert report.predicted == [CASES[0]]


def test_a_picture_in_too_many_colours_is_a_case(tmp_path: Path) -> None:
    from imageio.v3 import imwrite

    for name in ("x.png", "y_0000.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        imwrite(tmp_path / name, np.full((8, 9, 4), 7, np.uint8))
    cases = find_cases(tmp_path, 3, file_ending=".png")
    assert [case.case_id for case in cases] == ["x", "y"]


def test_a_broken_image_stops_no_other(
    model: Path, images: Path, predicted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "images"
    shutil.copytree(images, broken)
    whole = (images / f"{CASES[1]}_0000.nii.gz").read_bytes()
    (broken / f"{CASES[1]}_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    (broken / "sub-00_T1w_0000.nii.gz").write_bytes(b"no image")
    call = ["predict", "-i", str(broken), "-o", str(tmp_path / "out"), "-m", str(model), "-device", "cpu"]
    assert cli.main(call) == 2
    printed = capsys.readouterr()
    assert "2 predicted, 0 kept, 2 failed" in printed.out
    for case in (CASES[1], "sub-00_T1w"):
        assert f"failed: {case}: images/{case}_0000.nii.gz" in printed.out
    assert "Traceback" not in printed.err
    good = {name: values for name, values in maps(predicted).items() if CASES[1] not in name}
    assert maps(tmp_path / "out") == good

    shutil.copy(images / f"{CASES[1]}_0000.nii.gz", broken)
    (broken / "sub-00_T1w_0000.nii.gz").unlink()
    assert cli.main(call) == 0
    assert "1 predicted, 2 kept, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("home", "stage"), [(command._NnunetModel, "soft_maps"), (map_export, "export_prediction")]
)
def test_a_case_that_fails_later_stops_no_other_either(
    model: Path,
    images: Path,
    tmp_path: Path,
    home: Any,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = getattr(home, stage)

    def fail_on_second(first: Any, *arguments: Any) -> Any:
        if CASES[1] in str(arguments):
            raise RuntimeError("out of memory")
        return original(first, *arguments)

    monkeypatch.setattr(home, stage, fail_on_second)
    report = predict(images, tmp_path, model, progress=False)
    assert [*report.failed] == [CASES[1]]
    assert re.search("RuntimeError.*: out of memory", report.failed[CASES[1]])
    assert report.predicted == [CASES[0], CASES[2]]
    assert not [file for file in maps(tmp_path) if CASES[1] in file]
    assert "Traceback" not in capsys.readouterr().err


# Which images


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "cases"),
    [
        (["a_0000.nii.gz", "b_0000.nii"], ["a", "b"]),
        (["b.nii.gz", "a.nii", ".c.nii.gz", "notes.txt"], ["a", "b"]),
        (["a_0000.nii.gz", "b.nii.gz"], ["a", "b"]),
        # numbers of patients, not of channels
        (["p_0000.nii.gz", "p_0001.nii.gz"], ["p_0000", "p_0001"]),
        (["p_0001.nii.gz"], ["p_0001"]),
    ],
)
def test_names_of_a_folder(tmp_path: Path, names: list[str], cases: list[str]) -> None:
    found = find_cases(touch(tmp_path, *names), 1)
    assert [case.case_id for case in found] == cases
    assert all(len(case.files) == 1 for case in found)


def test_channels_are_one_case(tmp_path: Path) -> None:
    touch(tmp_path, "a_0001.nii.gz", "a_0000.nii.gz", "b_0000.nii.gz", "b_0001.nii")
    found = {case.case_id: [file.name for file in case.files] for case in find_cases(tmp_path, 2)}
    assert found == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b": ["b_0000.nii.gz", "b_0001.nii"]}


BIDS = (
    "sub-01/anat/sub-01_T2w.nii.gz",
    "sub-01/dwi/sub-01_dwi.nii.gz",
    "sub-02/ses-1/anat/sub-02_ses-1_T2w.nii.gz",
)


def test_bids(tmp_path: Path) -> None:
    touch(tmp_path, *BIDS, "derivatives/labels/sub-01/anat/sub-01_T2w_seg.nii.gz", "sub-01/fmap/x.nii.gz")
    assert [case.case_id for case in find_cases(tmp_path, 1)] == [
        "sub-01_T2w",
        "sub-01_dwi",
        "sub-02_ses-1_T2w",
    ]
    chosen = find_cases(tmp_path, 1, ["T2w"])
    assert [case.files[0].relative_to(tmp_path).as_posix() for case in chosen] == [BIDS[0], BIDS[2]]
    with pytest.raises(UserError, match="no image of contrast T1w: there are T2w, dwi"):
        find_cases(tmp_path, 1, ["T1w"])


@pytest.mark.parametrize(
    ("names", "source", "channels", "match"),
    [
        ([], "", 1, "found 0 NIfTI files and 0 others: check the path"),
        (["notes.txt"], "", 1, "expected NIfTI files .*found 0 NIfTI files and 1 others"),
        (["notes.txt"], "notes.txt", 1, "expected a folder, or a file that ends in .nii.gz or .nii"),
        ([], "nowhere", 1, "found nothing: check the path"),
        (["a.nii", "a.nii.gz"], "", 1, "two images would both be case a: .*a.nii.*a.nii.gz"),
        (["a.nii", "a_0000.nii.gz"], "", 1, "two images would both be case a:"),
        (["a_0000.nii.gz"], "", 2, "a: expected one image for each of the channels 0000, 0001, found a_0000"),
        ([f"a_000{n}.nii" for n in range(3)], "", 2, "for each of the channels 0000, 0001, found"),
        (["a_0000.nii", "a_0000.nii.gz", "a_0001.nii"], "", 2, "a: expected one image for each"),
        (["a.nii"], "", 2, "takes 2 channels: expected names that end in _0000 to _0001"),
    ],
)
def test_sources_that_are_refused(
    tmp_path: Path, names: list[str], source: str, channels: int, match: str
) -> None:
    with pytest.raises(UserError, match=match):
        find_cases(touch(tmp_path, *names) / source, channels)


def test_contrasts_need_a_bids_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a BIDS folder to choose contrasts from"):
        find_cases(touch(tmp_path, "a.nii"), 1, ["T2w"])


@given(
    st.sets(st.from_regex(r"[ab](_0{3}[012])?", fullmatch=True), min_size=1),
    st.sampled_from([".nii", ".nii.gz"]),
)
def test_one_channel_every_image_is_one_case_with_a_name_of_its_own(stems: set[str], ending: str) -> None:
    """Or the call is refused; no image is lost and none is predicted twice."""
    from nnunet_softseg.inference.predict import _one_per_image

    files = [Path(stem + ending) for stem in sorted(stems)]
    cases = _one_per_image(files)
    assert [case.files for case in cases] == [(file,) for file in files]
    assert all(file.name.startswith(case.case_id) for case in cases for file in case.files)


def test_a_file_and_bids_are_predicted_like_a_folder(
    model: Path, images: Path, predicted: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "any name.nii.gz"
    shutil.copy(images / f"{CASES[0]}_0000.nii.gz", plain)
    predict(plain, tmp_path / "one", model, progress=False)
    expected = maps(predicted)
    assert maps(tmp_path / "one") == {
        "any name.nii.gz": expected[f"{CASES[0]}.nii.gz"],
        "soft/any name_0001.nii.gz": expected[f"soft/{CASES[0]}_0001.nii.gz"],
    }
    for case in CASES:
        target = tmp_path / "bids" / case[:6] / "anat" / f"{case}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / f"{case}_0000.nii.gz", target)
    predict(tmp_path / "bids", tmp_path / "bids" / "derivatives" / "softseg", model, progress=False)
    assert maps(tmp_path / "bids" / "derivatives" / "softseg") == expected


# Which folder


def test_predictions_stay_out_of_the_folder_of_the_images(model: Path, images: Path, tmp_path: Path) -> None:
    for source in (images, images / f"{CASES[0]}_0000.nii.gz"):
        with pytest.raises(UserError, match="expected a folder without the images to predict"):
            predict(source, images, model, progress=False)
    linked = tmp_path / "link"
    linked.symlink_to(images)
    with pytest.raises(UserError, match="expected a folder without the images to predict"):
        predict(images, linked, model, progress=False)
    assert len(list(images.iterdir())) == len(CASES)


def test_predictions_stay_out_of_other_derivatives(model: Path, images: Path, tmp_path: Path) -> None:
    """make-gt's and the BIDS-App's folders have a page and maps of their own, of people."""
    folder = tmp_path / "softseg"
    touch(tmp_path, "softseg/dataset_description.json")  # as BIDS asks of a folder that will have predictions
    predict(images, folder, model, only=[], progress=False)
    touch(tmp_path, "softseg/sub-01/anat/sub-01_T2w_label-SC_probseg.nii.gz")
    before = sorted(folder.rglob("*"))
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"softseg: expected .* found BIDS images or other derivatives"):
            predict(images, folder, model, overwrite=overwrite, progress=False)
    assert sorted(folder.rglob("*")) == before
    (folder / RUN).write_text("{}")  # predictions among which others have come since
    predict(images, folder, model, only=[], progress=False)


def test_a_folder_that_cannot_be_written_is_told_before_the_model_is_loaded(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_predictor", lambda *_: pytest.fail("the model was loaded"))
    file = touch(tmp_path, "file") / "file"
    with pytest.raises(UserError, match="expected a folder, found a file"):
        predict(images, file, model, progress=False)
    with pytest.raises(UserError, match="cannot make the folder"):
        predict(images, file / "out", model, progress=False)

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.replace", read_only)
    with pytest.raises(UserError, match=r"cannot write .*Read-only file system"):
        predict(images, tmp_path / "out", model, progress=False)


@pytest.fixture
def other(model: Path, tmp_path: Path) -> Path:
    """Return a model that differs in its weights."""
    other = tmp_path / FOLDER
    shutil.copytree(model, other)
    checkpoint = other / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=False)
    content["network_weights"] = {name: -value for name, value in content["network_weights"].items()}
    torch.save(content, checkpoint)
    return other


def test_what_the_stock_command_has_written_since_is_not_kept(
    model: Path, other: Path, images: Path, copied: Path
) -> None:
    output = copied / "out"
    before = maps(output)
    stock_predict(other, images, output)
    written = maps(output)
    assert written != before
    with pytest.raises(UserError, match=r"found sub-01_T1w, .* of unknown origin"):
        predict(images, output, model, progress=False)
    assert maps(output) == written


def test_other_cases_do_not_join_predictions_of_the_stock_command(
    model: Path, images: Path, copied: Path
) -> None:
    """softseg.json would forget what was told of those, their flags and training cases."""
    output = copied / "out"
    map_export.forget_cases(output, CASES[2:], ".nii.gz")
    (output / RUN).unlink()
    before = softseg_json(output)
    assert set(before["cases"]) == set(CASES[:2])
    with pytest.raises(UserError, match=r"found sub-01_T1w, sub-01_T2w of unknown origin"):
        predict(images, output, model, only=CASES[2:], progress=False)
    assert softseg_json(output) == before


def test_predictions_of_another_model_or_mode_are_not_mixed_in(
    model: Path, other: Path, images: Path, predicted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(predicted, output)
    with pytest.raises(UserError, match=f"found {RUN} that differs in checkpoints: .*--overwrite"):
        predict(images, output, other, progress=False)
    with pytest.raises(UserError, match="that differs in localize"):
        predict(images, output, model, localize="never", progress=False)
    assert maps(output) == maps(predicted)
    (output / RUN).unlink()
    with pytest.raises(UserError, match=r"found sub-01_T1w, .* of unknown origin"):
        predict(images, output, model, progress=False)
    report = predict(images, output, other, overwrite=True, progress=False)
    assert report.predicted == list(CASES)
    assert maps(output) != maps(predicted)


# Which model


def remove_plans_entries(folder: Path) -> None:
    (folder / "plans.json").write_text(json.dumps(vanilla_plans()))


def cut_off_checkpoint(folder: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:1000])


def rename_trainer(folder: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(file, weights_only=False), "trainer_name": "nnUNetTrainerOfNobody"}, file)


def widen_network(folder: Path) -> None:
    plans = json.loads((folder / "plans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["arch_kwargs"]["features_per_stage"] = [6, 12]
    (folder / "plans.json").write_text(json.dumps(plans))


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (remove_plans_entries, "plans.json without the entries of nnunet-softseg: .*nnUNetv2_predict"),
        (
            lambda folder: (folder / "plans.json").unlink(),
            "expected the folder of a trained model.*no plans.json",
        ),
        (lambda folder: (folder / "plans.json").write_text("{"), "plans.json: expected JSON"),
        (lambda folder: (folder / "dataset.json").unlink(), "dataset.json: expected a JSON file, found none"),
        (lambda folder: shutil.rmtree(folder / "fold_0"), "expected fold_0/checkpoint_final.pth, found no"),
        (lambda folder: shutil.rmtree(folder), "found nothing: correct -m"),
        (cut_off_checkpoint, "expected a checkpoint of weights and numbers, found a file that is cut off"),
        (rename_trainer, "expected .* a trainer installed here, found RuntimeError"),
        (widen_network, "found RuntimeError: Error.* in loading state_dict"),
    ],
)
def test_models_that_are_refused(
    model: Path, images: Path, tmp_path: Path, spoil: Callable[[Path], None], match: str
) -> None:
    spoilt = tmp_path / FOLDER
    shutil.copytree(model, spoilt)
    spoil(spoilt)
    with pytest.raises(UserError, match=match) as caught:
        predict(images, tmp_path / "out", spoilt, progress=False)
    assert "\n" not in str(caught.value)
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


def test_a_model_that_is_refused_leaves_predictions_to_be_overwritten_as_they_are(
    model: Path, images: Path, predicted: Path, tmp_path: Path
) -> None:
    spoilt, output = tmp_path / FOLDER, tmp_path / "out"
    shutil.copytree(model, spoilt)
    shutil.copytree(predicted, output)
    rename_trainer(spoilt)
    before = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="a trainer installed here"):
        predict(images, output, spoilt, overwrite=True, progress=False)
    assert {file: file.read_bytes() for file in output.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("path", "options", "match"),
    [
        ("..", {}, f"found no plans.json; inside it is {FOLDER}: correct -m"),
        (".", {"folds": (0, 3)}, "expected fold_3/checkpoint_final.pth, found fold_0/checkpoint_final.pth"),
        (".", {"checkpoint": "checkpoint_best.pth"}, "expected fold_0/checkpoint_best.pth"),
        (
            ".",
            {"localize": "sometimes"},
            "--localize, .*expected one of always, auto, never, found sometimes",
        ),
        (".", {"backend": "abacus"}, "NNUNET_SOFTSEG_BACKEND is 'abacus', expected one of"),
        (".", {"device": "tpu"}, "-device tpu: expected one of those here"),
    ],
)
def test_calls_that_are_refused(
    model: Path, images: Path, tmp_path: Path, path: str, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        predict(images, tmp_path / "out", (model / path).resolve(), progress=False, **options)
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_what_nnunets_command_does_not_find_is_told_with_what_is_there(model: Path, tmp_path: Path) -> None:
    """It opens <model>/dataset.json and <model>/fold_<fold>/<checkpoint>, of folds 0 to 4 without -f."""
    there = tmp_path / "Dataset901_Tiny" / f"{TRAINER}__nnUNetSoftSegPlans__3d_fullres"
    shutil.copytree(model, there)

    def told(file: Path) -> str | None:
        with pytest.raises(FileNotFoundError) as missing:
            file.open()
        mistake = explain_missing_model(missing.value)
        return mistake and str(mistake)

    asked = there.with_name(FOLDER)
    assert told(asked / "dataset.json") == (
        f"{asked}: expected the folder of a trained model, nnUNet_results/DatasetNNN_Name/<trainer>__"
        f"<plans>__<configuration>, found nothing; beside it is {there.name}: name one with -tr, -p "
        "and -c, and its dataset with -d"
    )
    assert told(there / "fold_1" / "checkpoint_final.pth") == (
        f"{there}: expected fold_1/checkpoint_final.pth, found fold_0/checkpoint_final.pth: correct -f or "
        "-chk"
    )
    assert told(there / "debug.json") is None
    assert told(tmp_path / "dataset.json") is None
    assert explain_missing_model(KeyError("x")) is None


def test_a_model_of_another_version_is_flagged(model: Path, images: Path, tmp_path: Path) -> None:
    old = tmp_path / FOLDER
    shutil.copytree(model, old)
    plans = json.loads((old / "plans.json").read_text())
    plans[PLANS_KEY]["versions"]["nnunet_softseg"] = "0.0.1"
    plans[PLANS_KEY]["settings"]["of_the_future"] = 3
    (old / "plans.json").write_text(json.dumps(plans))
    warning = f"the model was trained with nnunet_softseg 0.0.1 (here {versions()['nnunet_softseg']})"
    report = predict(images, tmp_path / "out", old, progress=False)
    assert report.warnings == [warning]
    cases = softseg_json(tmp_path / "out")["cases"].values()
    assert all(warning in case["warnings"] for case in cases)
    stock = stock_predict(old, images, tmp_path / "stock")
    assert softseg_json(stock) == softseg_json(tmp_path / "out")
    assert version_warning({PLANS_KEY: {"versions": versions()}}) is None
    assert "unknown" in str(version_warning({}))


def test_an_exported_archive(model: Path, images: Path, predicted: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "model"), "zip", model.parents[1], model.parent.name)
    predict(images, tmp_path / "out", archive, progress=False)
    assert maps(tmp_path / "out") == maps(predicted)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(Path(archive).read_bytes()[:500])
    with pytest.raises(UserError, match="expected an archive of nnUNetv2_export_model_to_zip"):
        predict(images, tmp_path / "other", broken, progress=False)
    empty = shutil.make_archive(str(tmp_path / "empty"), "zip", images)
    with pytest.raises(UserError, match="expected one trained model, found 0"):
        predict(images, tmp_path / "other", empty, progress=False)


# The rest


def test_options_reach_the_prediction_and_the_report_says_what_was_overruled(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNUNET_SOFTSEG_LOCALIZE", "never")
    monkeypatch.delenv("NNUNET_SOFTSEG_BACKEND", raising=False)
    seen = []
    original = command._predict_cases
    monkeypatch.setattr(command, "_predict_cases", lambda *arguments: seen.append(arguments[-1].options))
    predict(images, tmp_path / "2", model, progress=False)
    monkeypatch.setattr(
        command, "_predict_cases", lambda *run: [seen.append(run[-1].options), original(*run)]
    )
    one = images / f"{CASES[0]}_0000.nii.gz"
    report = predict(one, tmp_path / "1", model, localize="always", backend="torch-float32", progress=False)
    assert [(options.localize, options.backend) for options in seen] == [
        ("never", "auto"), ("always", "torch-float32"),
    ]  # fmt: skip
    said = "--localize always overrules NNUNET_SOFTSEG_LOCALIZE=never"
    assert report.warnings == [said]
    entry = softseg_json(tmp_path / "1")["cases"][CASES[0]]
    assert entry["overruled"] == [said]
    assert entry["localiser"]["mode"] == "always"


def test_the_report_names_what_to_look_at() -> None:
    report = PredictionReport(Path("OUT"), ["a", "b"], ["c"], {"d": "no image"}, "3 cases, 1 flagged:")
    assert report.as_text().splitlines() == [
        "OUT: 2 predicted, 1 kept, 1 failed",
        "3 cases, 1 flagged:",
        "failed: d: no image",
    ]


def test_mistakes_are_told_without_loading_torch(in_new_python, tmp_path: Path) -> None:
    code = f"""
import sys
from nnunet_softseg.cli import main
print(main(["predict", "-i", "nowhere", "-o", "out", "-m", {str(tmp_path)!r}]), "torch" in sys.modules)
"""
    assert in_new_python(code) == "2 False"


def test_the_command_hands_on_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    report = SimpleNamespace(warnings=[], as_text=lambda: "", failed={})
    monkeypatch.setattr(
        "nnunet_softseg.inference.predict.predict",
        lambda *args, **options: calls.append((args, options)) or report,
    )
    call = (
        "predict -i I -o O -m M -f 0 all -chk C --contrasts T2w -device cpu --localize never --backend torch"
    )
    switches = ["--overwrite", "--largest-piece", "--discard-implausible", "--calibrate", "--no-qc"]
    switches.append("--trust-model")
    assert cli.main([*call.split(), *switches, "-np", "3"]) == 0
    assert calls == [
        (
            (),
            {
                "source": "I",
                "output": "O",
                "model": "M",
                "folds": ("0", "all"),
                "checkpoint": "C",
                "contrasts": ("T2w",),
                "device": "cpu",
                "localize": "never",
                "largest_piece": True,
                "discard_implausible": True,
                "calibrate": True,
                "no_qc": True,
                "backend": "torch",
                "overwrite": True,
                "trust_model": True,
                "num_threads": 3,
            },
        )
    ]


# What is said before it runs


def test_images_are_checked_before_they_are_predicted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What predict refuses or flags, case by case; none hides the others."""
    folder = tmp_path / "images"
    for number, name in enumerate(("a_0000.nii.gz", "b.NII.GZ", "c d.nii.gz", "turned.nii.gz")):
        write_image(folder / name, number)
    image = nib.load(folder / "turned.nii.gz")
    save_nifti(folder / "turned.nii.gz", np.asarray(image.dataobj), affine_of("RPI", (1.1, 0.9, 1.0)))
    values = np.asarray(image.dataobj)
    save_nifti(folder / "flat.nii.gz", np.full_like(values, 7), image.affine)
    save_nifti(folder / "nan.nii.gz", np.where(values > 250, np.nan, values), image.affine)
    save_nifti(folder / "series.nii.gz", np.stack([values, values], axis=-1), image.affine)
    (folder / "broken.nii.gz").write_bytes(b"\x1f\x8b12")
    (folder / "other.nrrd").touch()
    for options in ([], ["-m", str(model)]):
        assert cli.main(["check", "-i", str(folder), *options, "-np", "0"]) == 2
        printed = capsys.readouterr().out
        assert "images: 8 cases looked at\n3 errors:" in printed
        assert re.search(r"series.*: take each volume, or their mean, as an image of three", printed)
        assert "nan: " in printed
        assert "broken" in printed
        assert "flat: with one value in all voxels" in printed
        assert "1 images of other formats are passed over: other.nrrd" in printed
    for name in ("nan.nii.gz", "broken.nii.gz", "series.nii.gz"):
        (folder / name).unlink()
    assert cli.main(["check", "-i", str(folder), "-m", str(model)]) == 0
    assert f"next: nnunet-softseg predict -i {folder} -o OUT -m {model}" in capsys.readouterr().out
    spaced = folder.rename(tmp_path / "my images")
    assert cli.main(["check", "-i", str(spaced)]) == 0
    assert f"next: nnunet-softseg predict -i '{spaced}' -o OUT\n" in capsys.readouterr().out


def test_a_check_of_both_or_neither_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 2
    assert "expected a dataset (-d), or images (-i)" in capsys.readouterr().err
    assert cli.main(["check", "-d", "101", "-m", "model"]) == 2


def test_stock_lists_say_which_image_has_no_channel(tmp_path: Path) -> None:
    for name in ("sub-01_0000.nii.gz", "sub-02.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=r"found 1 without a channel: sub-02.nii.gz: rename.*sub-02_0000.nii.gz"
    ):
        images_of_folder(str(tmp_path), ".nii.gz")

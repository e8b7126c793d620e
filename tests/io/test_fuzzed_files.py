"""No file makes a command end in a traceback, with another exit code, in minutes, or out of memory.

Forty files here, ten for the slower commands. This takes all:
`SOFTSEG_FUZZ=200 pytest -s --timeout 0 tests/io/test_fuzzed_files.py`.
"""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from fuzzed_nifti import SHAPE, cord, fuzzed, volume_mm3
from tiny_dataset import TinyDataset, plan_and_preprocess

from nnunet_softseg.cli import main
from nnunet_softseg.settings import PLANS_KEY

MOST_S, MOST_BYTES = 10, 1 << 30
DRIFT = (0, 2, 3)
MODEL = Path(__file__).parents[1] / "data" / "model_of_0.1.0"
WANTED = os.environ.get("SOFTSEG_FUZZ")
NUMBER = int(WANTED or 40)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("fuzzed")
    paths = [folder / f"sub-{index:03d}_T2w.nii.gz" for index in range(NUMBER)]
    for path, content in zip(paths, fuzzed(NUMBER), strict=True):
        path.write_bytes(content)
    return paths


@pytest.fixture(scope="module")
def some(files: list[Path]) -> list[Path]:
    """Those for commands that take longer."""
    return files if WANTED else files[::4]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("whole") / "whole.nii.gz"
    nib.save(cord(np.random.default_rng(0)), file)
    return file


@contextlib.contextmanager
def limits(seconds: float, memory: int) -> Iterator[None]:
    """More CPU time, or so much more address space than now, is an error within the block."""

    def too_slow(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s of CPU")

    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGPROF, too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (here + memory, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def call(
    *words: object, seconds: float = MOST_S, memory: int = MOST_BYTES, codes: tuple[int, ...] = (0, 2)
) -> tuple[int, str]:
    """The exit code of a command, and all it printed; libraries may map more than a gigabyte, not fill it."""
    said = io.StringIO()
    started, peak = time.process_time(), peak_bytes()
    with limits(seconds, memory), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([str(word) for word in words])
    text = said.getvalue()
    grown = peak_bytes() - peak
    assert grown < MOST_BYTES, text
    assert code in codes, text
    assert "Traceback" not in text
    assert "unexpected " not in text, text
    took_s = time.process_time() - started
    print(f"{words[0]}: {took_s:.2f} s of CPU, {grown >> 20} MiB, exit code {code}", file=sys.stderr)
    return code, text


def is_named_in_one_line(file: Path, text: str) -> None:
    errors = [line for line in text.splitlines() if line.startswith("nnunet-softseg: error: ")]
    assert len(errors) == 1, text
    assert file.name in errors[0], text


LONG: dict[str, Any] = {"seconds": 600, "memory": 8 * MOST_BYTES}
"""For many files in one call."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="asks Linux for its memory")


def test_csa_gives_the_volume_of_nibabel_and_numpy_or_says_what_is_wrong(
    files: list[Path], tmp_path: Path
) -> None:
    measured = 0
    for file in files:
        code, text = call("csa", "-i", file, "-o", tmp_path / "csa.csv", "-np", 1)
        if code:
            is_named_in_one_line(file, text)
            continue
        measured += 1
        # Area times the distance between slices is volume, whatever the affine.
        affine = nib.load(file).affine
        steps, axis = affine[:3, :3], int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 2)[0])
        pixel_mm2 = np.linalg.norm(np.cross(*np.delete(steps, axis, axis=1).T))
        expected = volume_mm3(file) / abs(np.linalg.det(steps)) * pixel_mm2
        assert pd.read_csv(tmp_path / "csa.csv")["area_mm2"].sum() == pytest.approx(expected, rel=1e-4)
    assert measured > 0.2 * NUMBER


def test_evaluate_and_fuse_likewise(files: list[Path], whole: Path, tmp_path: Path) -> None:
    equal = 0
    for file in files:
        code, text = call("evaluate", "-i", file, "-g", file, "-o", tmp_path / "out", "-np", 1)
        if code:
            is_named_in_one_line(file, text)
            continue
        equal += 1
        (case,) = json.loads((tmp_path / "out" / "cases.json").read_text())["cases"]
        assert case["volume_mm3"] == pytest.approx(volume_mm3(file), rel=1e-5)
        assert case["mae"] == 0
        if WANTED:
            call("evaluate", "-i", file, "-g", whole, "-o", tmp_path / "out", "-np", 1)
        fused = tmp_path / "fused.nii.gz"
        code, text = call("fuse", "-i", file, whole, "-o", fused, "--overwrite")
        if code == 0:
            mean = (nib.load(file).get_fdata() + nib.load(whole).get_fdata()) / 2
            np.testing.assert_allclose(nib.load(fused).get_fdata(), mean, atol=1e-5)
    assert equal > 0.2 * NUMBER


def test_a_bad_file_stops_no_other_in_a_folder(files: list[Path], whole: Path, tmp_path: Path) -> None:
    """All in one call: those that are measured alone are measured, and the others named."""
    folder = tmp_path / "maps"
    folder.mkdir()
    for file in (*files, whole):
        shutil.copy(file, folder)
    alone = {
        file.name for file in files if main(["csa", "-i", str(file), "-o", str(tmp_path / "a.csv")]) == 0
    }
    code, text = call("csa", "-i", folder, "-o", tmp_path / "csa.csv", "-np", 1, seconds=60)
    assert code == 2
    assert {Path(name).name for name in pd.read_csv(tmp_path / "csa.csv")["file"]} == {*alone, whole.name}
    named = [line for line in text.splitlines() if line.startswith("nnunet-softseg: error: ")]
    assert len(named) == NUMBER - len(alone)


def values_of(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).get_fdata())


def test_levels_discs_and_rootlets_likewise(some: list[Path], whole: Path, tmp_path: Path) -> None:
    """Beside a whole map: what is no image of levels is named, and else there are rows of all slices."""
    for file in some:
        for option in ("--levels", "--discs", "--rootlets"):
            code, text = call("csa", "-i", whole, option, file, "-o", tmp_path / "csa.csv", "-np", 1)
            if code:
                is_named_in_one_line(file, text)
            else:
                assert len(pd.read_csv(tmp_path / "csa.csv")) == SHAPE[2]


def test_bridges_likewise(some: list[Path], whole: Path, tmp_path: Path) -> None:
    """As a cord around a whole lesion, whose volume is known, and as a lesion in a whole cord."""
    values, affine = np.zeros(SHAPE, np.float32), nib.load(whole).affine
    values[6:9, 5:7, 4:6] = 1
    lesion = tmp_path / "lesion.nii.gz"
    nib.save(nib.Nifti1Image(values, affine), lesion)
    measured = 0
    for file in some:
        for given in ((lesion, file), (file, whole)):
            table = tmp_path / "lesions.csv"
            code, text = call("bridges", "-i", given[0], "--cord", given[1], "-o", table)
            if code:
                is_named_in_one_line(given[0] if "that of the cord" in text else file, text)
            elif given[0] == lesion:
                measured += 1
                (volume,) = pd.read_csv(table)["volume_mm3"]
                assert volume == pytest.approx(12 * abs(np.linalg.det(affine[:3, :3])), rel=1e-5)
    assert measured > 0.1 * len(some)


def test_drift_likewise(some: list[Path], whole: Path, tmp_path: Path) -> None:
    """Of two persons in two releases, one map is the file."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        for number in (1, 2):
            shutil.copy(whole, folder / f"sub-{number}_T2w.nii.gz")
    for file in some:
        place = new / "sub-2_T2w.nii.gz"
        shutil.copy(file, place)
        code, text = call("drift", "--old", old, "--new", new, "-o", tmp_path / "out", "-np", 1, codes=DRIFT)
        if code == 2:
            is_named_in_one_line(place, text)


def numbered_model(root: Path) -> Path:
    model = root / MODEL.name
    shutil.copytree(MODEL / "fold_all", model / "fold_0")
    for name in ("plans.json", "dataset.json"):
        shutil.copy(MODEL / name, model)
    return model


def test_calibrate_likewise(some: list[Path], whole: Path, tmp_path: Path) -> None:
    """Of the validation maps, and of the soft labels, one is the file."""
    model = numbered_model(tmp_path)
    maps, labels = model / "fold_0" / "validation" / "soft", tmp_path / "softLabelsTr"
    for folder in (maps, labels):
        folder.mkdir(parents=True)
        for case in ("sub-1_T2w", "sub-2_T2w"):
            for label in (1, 2):
                shutil.copy(whole, folder / f"{case}_{label:04d}.nii.gz")
    for file in some:
        for place in (maps / "sub-2_T2w_0001.nii.gz", labels / "sub-2_T2w_0001.nii.gz"):
            shutil.copy(file, place)
            code, text = call("calibrate", "-m", model, "-g", labels, "-np", 1)
            if code:
                is_named_in_one_line(place, text)
            else:
                values = values_of(file)
                assert values.shape == SHAPE
                assert np.nanmin(values) >= -1e-5
                assert np.nanmax(values) <= 1 + 1e-5
            shutil.copy(whole, place)


def test_check_of_images_names_those_that_predict_would_refuse(files: list[Path], whole: Path) -> None:
    code, text = call("check", "-i", files[0].parent, "-m", MODEL, "-np", 1, seconds=60)
    assert code == 2, text
    for file in files:
        try:
            values_of(file)
        except Exception:
            assert file.name in text, file


def raw_dataset(root: Path, files: list[Path], whole: Path, place: str, monkeypatch: Any) -> Path:
    """A dataset in which an image, a soft label or a label map of each case is one of the files."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(root / name))
    raw = root / "raw" / "Dataset777_Fuzzed"
    names = {"imagesTr": "{}_0000.nii.gz", "softLabelsTr": "{}_0001.nii.gz", "labelsTr": "{}.nii.gz"}
    for folder in names:
        (raw / folder).mkdir(parents=True)
    for file in files:
        for folder, name in names.items():
            shutil.copy(
                file if folder == place else whole, raw / folder / name.format(file.name.split(".")[0])
            )
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "cord": 1},
        "numTraining": len(files),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIO" if place == "labelsTr" else "NibabelIOWithReorient",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    return raw


@pytest.mark.parametrize("place", ["imagesTr", "softLabelsTr", "labelsTr"])
def test_check_reports_all_cases(
    place: str, files: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw_dataset(tmp_path, files, whole, place, monkeypatch)
    code, text = call("check", "-d", 777, "-np", 1, "-o", tmp_path / "check.json", seconds=60)
    assert code == 2, text
    report = json.loads((tmp_path / "check.json").read_text())
    assert report["num_cases"] == NUMBER
    named = {finding["file"] for finding in report["errors"]}
    for file in files:
        try:
            shape = nib.load(file).shape
            np.asarray(nib.load(file).dataobj)
        except Exception:
            shape = None
        if shape != SHAPE:
            assert any(file.name.split(".")[0] in name for name in named), file


def in_folder(folder: Path, files: list[Path]) -> Path:
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder)
    return folder


def test_predict_goes_on(some: list[Path], tmp_path: Path) -> None:
    code, text = call(
        *("predict", "-i", in_folder(tmp_path / "images", some), "-o", tmp_path / "out", "-m", MODEL),
        *("-device", "cpu", "--backend", "torch", "--no-qc"),
        **LONG,
    )
    report = json.loads((tmp_path / "out" / "softseg.json").read_text())["cases"]
    assert code == 2, text
    assert len(report) + text.count("\nfailed: ") == len(some)
    print(f"predict: {len(report)} of {len(some)} predicted", file=sys.stderr)


def test_pseudo_label_names_what_it_cannot_predict_and_takes_the_others(
    some: list[Path], nnunet_folders: dict[str, Path], tmp_path: Path
) -> None:
    """By a model that has seen none of the images; its one fold validates on the first."""
    model = numbered_model(tmp_path)
    images, splits = in_folder(tmp_path / "images", some), tmp_path / "splits_final.json"
    plans = json.loads((model / "plans.json").read_text())
    plans[PLANS_KEY]["training_cases"] = {"0": ["sub-900_T2w"]}
    (model / "plans.json").write_text(json.dumps(plans))
    splits.write_text(json.dumps([{"train": ["sub-900_T2w"], "val": ["sub-901_T2w"]}]))
    words = ("pseudo-label", "-i", images, "--models", model, "--splits", splits, "-d", 201, "--name", "F")
    code, text = call(*words, "-device", "cpu", "-np", 1, **LONG)
    dataset = nnunet_folders["nnUNet_raw"] / "Dataset201_F"
    assert code == 2, text
    assert not dataset.exists()
    fit = [file for file in some if file.name.split(".")[0] not in text]
    for file in set(some) - set(fit):
        (images / file.name).unlink()
    code, text = call(*words, "-device", "cpu", "-np", 1, **LONG)
    assert code == 0, text
    assert len(list((dataset / "softLabelsTr").glob("*_0001.nii.gz"))) == len(fit) > 0.1 * len(some)
    for file in fit:
        copied = dataset / "imagesTr" / file.name.replace(".nii", "_0000.nii")
        np.testing.assert_array_equal(values_of(copied), values_of(file))
    print(f"pseudo-label: {len(fit)} of {len(some)} labelled", file=sys.stderr)


def bids_of(root: Path, files: list[Path], whole: Path, derivative: str, end: str) -> Path:
    """A subject per file: its T2w image and mask are whole, and the mask of T1w is the file."""
    for file in files:
        subject = file.name.partition("_")[0]
        for contrast in ("T1w", "T2w"):
            image = root / subject / "anat" / f"{subject}_{contrast}.nii.gz"
            mask = root / "derivatives" / derivative / subject / "anat" / f"{subject}_{contrast}{end}.nii.gz"
            for target in (image, mask):
                target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(whole, image)
            shutil.copy(file if contrast == "T1w" else whole, mask)
    return root


def test_make_gt_goes_on(some: list[Path], whole: Path, tmp_path: Path) -> None:
    images = bids_of(tmp_path / "a", some, whole, "labels", "_seg-manual")
    code, text = call("make-gt", "-i", images, "-o", tmp_path / "gt", "--soft-masks", "-np", 1, **LONG)
    made = list((tmp_path / "gt").glob("sub-*/anat/*T2w*probseg.nii.gz"))
    failed = json.loads((tmp_path / "gt" / "qc" / "failed.json").read_text())
    assert (code, len(made) + len(failed)) == (2, len(some)), text
    print(f"make-gt: {len(made)} of {len(some)} made", file=sys.stderr)


def test_convert_takes_the_values_or_says_what_is_wrong(
    some: list[Path], whole: Path, tmp_path: Path
) -> None:
    """Of three persons, the image or the soft label of one is the file."""
    end = "_label-SC_desc-softseg_probseg"
    persons = [tmp_path / f"sub-{number}_T1w.nii.gz" for number in (1, 2, 3)]
    for person in persons:
        shutil.copy(whole, person)
    bids = bids_of(tmp_path / "bids", persons, whole, "softseg", end)
    dataset = tmp_path / "raw" / "Dataset778_F"
    words = ("convert", "-i", bids, "-d", 778, "--name", "F", "-o", dataset.parent, "-np", 1)
    anat = Path("sub-3", "anat")
    label = bids / "derivatives" / "softseg" / anat / f"sub-3_T1w{end}.nii.gz"
    converted = 0
    for file in some:
        for place in (bids / anat / "sub-3_T1w.nii.gz", label):
            shutil.copy(file, place)
            code, text = call(*words)
            shutil.copy(whole, place)
            if code:
                is_named_in_one_line(Path("sub-3_T1w"), text)
                assert not list(dataset.parent.glob("*"))
                continue
            (made,) = dataset.glob(
                "soft*/sub-3_T1w_0001.nii.gz" if place == label else "im*/sub-3_T1w_0000.nii.gz"
            )
            np.testing.assert_allclose(values_of(made), values_of(file), atol=1e-5)
            converted += place == label
            shutil.rmtree(dataset)
    assert converted > 0.2 * len(some)


def test_prepare_names_the_files_and_of_the_others_a_perfect_network_is_simulated(
    some: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = raw_dataset(tmp_path, some, whole, "none", monkeypatch)
    cases = tuple(file.name.split(".")[0] for file in some)
    plan_and_preprocess(TinyDataset(tmp_path, raw.name, cases, (1,)), spacing_mm=(1.0, 1.0, 1.0))
    labels = {
        raw / "softLabelsTr" / f"{case}_0001.nii.gz": file for case, file in zip(cases, some, strict=True)
    }
    for label, file in labels.items():
        shutil.copy(file, label)
    code, text = call("prepare", "-d", 777, "-c", "3d_fullres", "-np", 1, **LONG)
    assert code == 2, text
    for label, file in labels.items():
        if label.name in text:
            shutil.copy(whole, label)
        else:
            assert values_of(file).shape == SHAPE
            assert -1e-5 <= np.nanmin(values_of(file)) <= np.nanmax(values_of(file)) <= 1 + 1e-5
    assert sum(label.name in text for label in labels) < 0.9 * len(some)
    code, text = call("prepare", "-d", 777, "-c", "3d_fullres", "-np", 1, **LONG)
    assert code == 0, text
    # A label map is that of the whole map, and the soft label of a file is not: nothing else is wrong.
    for label, file in labels.items():
        label_map = raw / "labelsTr" / file.name
        image = nib.load(label)
        mask = (np.nan_to_num(image.get_fdata()) > 0.5).astype(np.uint8)
        nib.save(nib.Nifti1Image(mask, nib.load(whole).affine), label_map)
    words = ("check", "-d", 777, "-np", 1, "--simulate", tmp_path / "perfect")
    code, text = call(*words, **LONG)
    assert code == 0, text
    assert len(list((tmp_path / "perfect" / "soft").iterdir())) == len(some)


def test_compare_names_the_files(some: list[Path], whole: Path, tmp_path: Path) -> None:
    references, maps = tmp_path / "references", in_folder(tmp_path / "maps", some)
    references.mkdir()
    for file in some:
        shutil.copy(whole, references / file.name)
    methods = ("--method", f"a={maps}", "--method", f"b={references}")
    words = ("compare", "-g", references, *methods, "--no-report", "-o", tmp_path / "out", "-np", 1)
    code, text = call(*words, **LONG)
    assert code == 2, text
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["num_cases"] + len(summary["failed"]) == len(some)

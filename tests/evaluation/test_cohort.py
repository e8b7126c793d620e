"""`nnunet-softseg-bids`: derivatives of participants, the report of the group, reruns, and mistakes.

The model is that of `data/model_of_0.1.0`, so that the soft maps are known from there.
"""

import _thread
import hashlib
import json
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from nnunet_softseg.cli.bids_app import main
from nnunet_softseg.evaluation.cohort import derivatives as derivatives_of_bids
from nnunet_softseg.evaluation.cohort import participants
from nnunet_softseg.evaluation.cohort.derivatives import label_words
from nnunet_softseg.evaluation.cohort.group import COLUMNS, GroupReport, _page
from nnunet_softseg.inference import trained_model

MODEL = Path(__file__).parents[1] / "data" / "model_of_0.1.0"
AS_THEN = ["-device", "cpu", "--backend", "torch-float32", "--localize", "never", "-np", "1"]
VOXEL_MM = (1.0, 1.2, 0.9)
DONE = "sub-01/anat/sub-01_T2w", "sub-02/ses-1/anat/sub-02_ses-1_T2w"


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two participants, one with a session, and one whose image is cut off."""
    folder = tmp_path_factory.mktemp("bids folder")
    for place in DONE:
        (folder / place).parent.mkdir(parents=True)
        shutil.copyfile(MODEL / "image.nii.gz", folder / f"{place}.nii.gz")
    cut_off = folder / "sub-03" / "anat" / "sub-03_T2w.nii.gz"
    cut_off.parent.mkdir(parents=True)
    cut_off.write_bytes((MODEL / "image.nii.gz").read_bytes()[:2000])
    return folder


@pytest.fixture(scope="module")
def derivatives(bids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("derivatives")
    assert main([str(bids), str(output), "participant", "-m", str(MODEL), *AS_THEN]) == 2
    assert main([str(bids), str(output), "group"]) == 0
    return output


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("[!.]*") if file.is_file()}


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of change of every file."""
    return {
        name: (hashlib.sha256((folder / name).read_bytes()).hexdigest(), (folder / name).stat().st_mtime_ns)
        for name in files(folder)
    }


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("predicted again")


def test_every_file_has_its_bids_name_and_nothing_else_is_left(derivatives: Path) -> None:
    beside = (
        "_dseg.nii.gz",
        "_dseg.json",
        "_csa.tsv",
        "_label-label1_probseg.nii.gz",
        "_label-label2_probseg.nii.gz",
    )
    expected = {f"{place}{end}" for place in DONE for end in beside}
    expected |= {"sub-01/figures/sub-01_T2w.webp", "sub-02/figures/sub-02_ses-1_T2w.webp"}
    expected |= {"sub-01.html", "sub-02.html", "sub-03.html", "logs/sub-03_T2w.json"}
    expected |= {
        "dataset_description.json",
        "dseg.tsv",
        "csa.json",
        "group_csa.tsv",
        "group_csa.json",
        "group.html",
    }
    assert files(derivatives) == expected


def test_soft_maps_and_label_map_are_those_of_predict(derivatives: Path) -> None:
    known = np.load(MODEL / "soft_maps.npz")
    for place in DONE:
        painted = np.asarray(nib.load(derivatives / f"{place}_dseg.nii.gz").dataobj)
        for value, name in ((1, "label1"), (2, "label2")):
            soft = nib.load(derivatives / f"{place}_label-{name}_probseg.nii.gz")
            np.testing.assert_allclose(np.asarray(soft.dataobj), known[name], rtol=0, atol=1e-6)
            assert soft.get_data_dtype() == np.float32
            # The two balls do not touch: where one exceeds one half, the label map has its value.
            assert ((painted == value) == (known[name] > 0.5)).all()


def test_areas_of_slices_add_up_to_the_volume(derivatives: Path) -> None:
    known = np.load(MODEL / "soft_maps.npz")
    table = pd.read_csv(derivatives / f"{DONE[0]}_csa.tsv", sep="\t")
    sidecar = json.loads((derivatives / f"{DONE[0]}_dseg.json").read_text())
    assert set(table.columns) == set(json.loads((derivatives / "csa.json").read_text()))
    for name in ("label1", "label2"):
        slices = table[table["label"] == name]
        volume = known[name].sum(dtype=np.float64) * np.prod(VOXEL_MM)
        assert slices["area_mm2"].sum() * VOXEL_MM[2] == pytest.approx(volume, rel=1e-4)
        numbers = sidecar["Labels"][name]
        assert numbers["soft_volume_mm3"] == pytest.approx(volume, rel=1e-4)
        assert numbers["csa_mm2"] == pytest.approx(slices["csa_mm2"].mean(), rel=1e-4)
        assert numbers["slices"] == slices["csa_mm2"].notna().sum()


def test_the_description_names_the_model_by_its_hash(derivatives: Path, bids: Path) -> None:
    description = json.loads((derivatives / "dataset_description.json").read_text())
    (made_by,) = description["GeneratedBy"]
    checkpoint = (MODEL / "fold_all" / "checkpoint_final.pth").read_bytes()
    assert description["DatasetType"] == "derivative"
    assert made_by["Name"] == "nnunet-softseg"
    assert made_by["Model"]["checkpoints"] == {"all": hashlib.sha256(checkpoint).hexdigest()}
    assert (derivatives / description["DatasetLinks"]["raw"]).resolve() == bids.resolve()
    sources = json.loads((derivatives / f"{DONE[1]}_dseg.json").read_text())["Sources"]
    assert sources == ["bids:raw:sub-02/ses-1/anat/sub-02_ses-1_T2w.nii.gz"]
    assert (derivatives / "dseg.tsv").read_text() == "index\tname\n1\tlabel1\n2\tlabel2\n"


def test_the_group_has_a_row_per_image_and_label_and_says_why_one_is_missing(derivatives: Path) -> None:
    table = pd.read_csv(derivatives / "group_csa.tsv", sep="\t")
    rows = table[["participant_id", "session_id", "label"]].fillna("").to_numpy().tolist()
    assert rows == [
        ["sub-01", "", "label1"],
        ["sub-01", "", "label2"],
        ["sub-02", "ses-1", "label1"],
        ["sub-02", "ses-1", "label2"],
    ]
    page = (derivatives / "group.html").read_text()
    why = json.loads((derivatives / "logs" / "sub-03_T2w.json").read_text())["Failed"]
    assert "sub-03_T2w" in page
    assert why.split(":")[0].rpartition("/")[2].split()[0] in page


def test_without_pictures_the_same_numbers_and_no_link_to_a_page(
    derivatives: Path, bids: Path, tmp_path: Path
) -> None:
    """--no-qc, and the group's page where some have a page of their own and some have none."""
    words = ["participant", "-m", str(MODEL), *AS_THEN, "--participant-label"]
    assert main([str(bids), str(tmp_path), *words, "01", "--no-qc"]) == 0
    assert not list(tmp_path.rglob("*.webp"))
    assert not (tmp_path / "sub-01.html").exists()
    for name in ("csa.tsv", "dseg.nii.gz"):
        file = f"{DONE[0]}_{name}"
        assert (tmp_path / file).read_bytes() == (derivatives / file).read_bytes()
    assert main([str(bids), str(tmp_path), *words, "02"]) == 0
    assert main([str(bids), str(tmp_path), "group"]) == 0
    page = (tmp_path / "group.html").read_text()
    assert 'href="sub-02.html#sub-02_ses-1_T2w"' in page
    assert "sub-01_T2w" in page
    assert 'href="sub-01' not in page


def test_a_repeated_call_predicts_only_what_is_missing(
    derivatives: Path, bids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(participants, "predict", refuse)
    before = state(derivatives)
    people = ["--participant-label", "01", "sub-02"]
    assert main([str(bids), str(derivatives), "participant", "-m", str(MODEL), *AS_THEN, *people]) == 0
    assert state(derivatives) == before


def test_derivatives_of_an_image_that_was_written_again_are_made_again(
    derivatives: Path,
    bids: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As `predict` does, by one rule; --overwrite makes all again; nothing of before stays beside the new."""
    images, output = shutil.copytree(bids, tmp_path / "bids"), shutil.copytree(derivatives, tmp_path / "out")
    call = [str(images), str(output), "participant", "-m", str(MODEL), *AS_THEN, "--participant-label"]
    people = ["01", "02"]
    other = {name: is_as for name, is_as in state(output).items() if name.startswith("sub-02/")}
    monkeypatch.setenv("NNUNET_SOFTSEG_NO_QC", "1")

    image = nib.load(MODEL / "image.nii.gz")
    affine = image.affine.copy()
    affine[:3, 3] += 7
    moved = nib.Nifti1Image(np.asarray(image.dataobj), affine)
    nib.save(moved, images / f"{DONE[0]}.nii.gz")
    assert main([*call, *people]) == 0
    assert "1 images written, 1 kept, 0 failed" in capsys.readouterr().out
    written = nib.load(output / f"{DONE[0]}_label-label1_probseg.nii.gz")
    np.testing.assert_allclose(written.affine, moved.affine, atol=1e-5)
    assert not (output / "sub-01" / "figures" / "sub-01_T2w.webp").exists()  # it was of the other image

    (images / f"{DONE[0]}.nii.gz").write_bytes(b"no image")
    assert main([*call, *people]) == 2
    assert {name for name in files(output) if "sub-01" in name} == {"sub-01.html", "logs/sub-01_T2w.json"}
    assert {name: is_as for name, is_as in state(output).items() if name.startswith("sub-02/")} == other

    monkeypatch.delenv("NNUNET_SOFTSEG_NO_QC")
    assert main([*call, "02", "--overwrite"]) == 0
    told = capsys.readouterr().out
    assert "1 images written, 0 kept, 0 failed" in told
    looked_at = next(line for line in told.splitlines() if line.startswith("to look at it: "))
    named = [Path(word) for word in shlex.split(looked_at) if word.endswith(".nii.gz")]
    assert len(named) == 3  # the image and the map of each label, where they stay
    assert all(file.is_file() for file in named)
    now = {name: is_as for name, is_as in state(output).items() if name.startswith("sub-02/")}
    assert now.keys() == other.keys()
    assert all(now[name][1] > other[name][1] for name in other)


def test_what_a_killed_call_had_predicted_is_put_in_place_by_the_next(
    bids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [str(bids), str(tmp_path), "participant", "-m", str(MODEL), *AS_THEN, "--participant-label", "01"]

    copied: list[Path] = []

    def killed_at_the_second(source: Path, target: Path) -> None:
        if copied:
            _thread.interrupt_main()  # Ctrl-C, as the main thread finds it once this one has ended
            raise OSError("interrupted")
        shutil.copyfile(source, target)
        copied.append(target)

    with monkeypatch.context() as patch:
        patch.setattr(participants, "copy_file", killed_at_the_second)
        ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
        try:
            assert main(call) == 130
        finally:
            signal.signal(signal.SIGINT, ours)
    assert "the same command goes on" in capsys.readouterr().err
    assert [file.name for file in copied] == ["sub-01_T2w_label-label1_probseg.nii.gz"]
    monkeypatch.setattr(participants, "predict", refuse)
    assert main(call) == 0
    assert "1 images written, 0 kept, 0 failed" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("*_probseg.nii.gz"))) == 2
    assert (tmp_path / "sub-01" / "anat" / "sub-01_T2w_dseg.nii.gz").is_file()


def test_the_page_of_a_participant_keeps_the_failure_of_another_session(tmp_path: Path) -> None:
    """Until it is mended; sub-1 has no part in sub-10's."""
    content = (MODEL / "image.nii.gz").read_bytes()
    images = {
        place: tmp_path / "bids" / f"{place}_T2w.nii.gz"
        for place in ("sub-1/ses-1/anat/sub-1_ses-1", "sub-1/ses-2/anat/sub-1_ses-2", "sub-10/anat/sub-10")
    }
    for file in images.values():
        file.parent.mkdir(parents=True)
        file.write_bytes(content[:2000])
    call = [str(tmp_path / "bids"), str(tmp_path / "out"), "participant", "-m", str(MODEL), *AS_THEN]
    assert main([*call, "--participant-label", "10"]) == 2
    assert main([*call, "--participant-label", "1", "--session-label", "1"]) == 2
    images["sub-1/ses-2/anat/sub-1_ses-2"].write_bytes(content)
    page = tmp_path / "out" / "sub-1.html"
    for mended in (False, True):
        if mended:
            images["sub-1/ses-1/anat/sub-1_ses-1"].write_bytes(content)
        session = "1" if mended else "2"
        assert main([*call, "--participant-label", "1", "--session-label", session]) == 0
        text = page.read_text(encoding="utf-8")
        assert "sub-1_ses-2_T2w" in text
        assert ("expected a whole file" in text) == (not mended)
        assert "sub-10" not in text
    first = images["sub-1/ses-1/anat/sub-1_ses-1"]
    first.write_bytes(content[:2000])
    assert main([*call, "--participant-label", "1", "--session-label", "1"]) == 2
    first.unlink()  # an image that is gone is no failure
    assert main([*call, "--participant-label", "1", "--overwrite"]) == 0
    assert "expected a whole file" not in page.read_text(encoding="utf-8")


def copy_of_model(folder: Path) -> Path:
    shutil.copytree(MODEL, folder)
    with (folder / "fold_all" / "checkpoint_final.pth").open("ab") as file:
        file.write(b"0")
    return folder


def test_derivatives_of_another_model_are_refused_and_left_alone(
    derivatives: Path, bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copy_of_model(tmp_path / "other")
    before = state(derivatives)
    assert main([str(bids), str(derivatives), "participant", "-m", str(other), *AS_THEN]) == 2
    assert "that differs in checkpoints: give another folder" in capsys.readouterr().err
    assert (
        main([str(bids), str(derivatives), "participant", "-m", str(MODEL), *AS_THEN, "--largest-piece"]) == 2
    )
    assert "that differs in largest_piece: give another folder" in capsys.readouterr().err
    assert state(derivatives) == before


def test_derivatives_of_the_same_model_in_another_precision_are_refused(
    derivatives: Path, bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = json.loads((derivatives / "dataset_description.json").read_text())
    description["GeneratedBy"][0]["Model"]["precision"] = "float16"
    (tmp_path / "dataset_description.json").write_text(json.dumps(description))
    assert main([str(bids), str(tmp_path), "participant", "-m", str(MODEL), *AS_THEN]) == 2
    assert "that differs in precision: give another folder" in capsys.readouterr().err


def test_a_second_process_at_the_same_participant_is_told_so(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".work").mkdir()
    call = [str(bids), str(tmp_path), "participant", "-m", str(MODEL), "--participant-label", "01"]
    with FileLock(tmp_path / ".work" / ".sub-01.lock"):
        assert main(call) == 2
    assert "another process is at work on the same participants" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told_before_its_lock_is_taken(
    bids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As docker makes a folder that it mounts: the user of the container may not write."""

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(derivatives_of_bids, "FileLock", denied)
    monkeypatch.setattr("os.replace", denied)
    assert main([str(bids), str(tmp_path / "out"), "participant", "-m", str(MODEL), *AS_THEN]) == 2
    assert "Permission denied; check that the folder is writable" in capsys.readouterr().err


Mistake = Callable[[Path, Path], tuple[list[str], str]]
MISTAKES: dict[str, Mistake] = {
    "no model": lambda bids, out: ([str(bids), str(out), "participant"], "give a trained model with -m"),
    "a model that is not there": lambda bids, out: (
        [str(bids), str(out), "participant", "-m", "nowhere"],
        "expected the folder of a trained model",
    ),
    "no such participant": lambda bids, out: (
        [str(bids), str(out), "participant", "-m", str(MODEL), "--participant-label", "99"],
        "--participant-label 99: expected some of those that have images, sub-01, sub-02, sub-03",
    ),
    "no such session": lambda bids, out: (
        [str(bids), str(out), "group", "--session-label", "2"],
        "--session-label 2: expected some of those that have images, ses-1",
    ),
    "no such contrast": lambda bids, out: (
        [str(bids), str(out), "participant", "-m", str(MODEL), "--contrasts", "T1w"],
        "no image of contrast T1w",
    ),
    "a folder that is not BIDS": lambda bids, out: (
        [str(MODEL), str(out), "participant", "-m", str(MODEL)],
        "expected images like sub-01/anat/sub-01_T2w.nii.gz",
    ),
    "a BIDS folder that is not there": lambda bids, out: (
        [str(bids / "no"), str(out), "participant", "-m", str(MODEL)],
        "expected a BIDS folder, found nothing",
    ),
    "the images' own folder": lambda bids, out: (
        [str(bids), str(bids), "participant", "-m", str(MODEL)],
        "found that of the images",
    ),
    "a folder with other things": lambda bids, out: (
        [str(bids), str(MODEL), "participant", "-m", str(MODEL)],
        "expected an empty folder, or derivatives of nnunet-softseg",
    ),
    "a model that is not calibrated": lambda bids, out: (
        [str(bids), str(out), "participant", "-m", str(MODEL), "--calibrate"],
        "run nnunet-softseg calibrate",
    ),
    "a group without participants": lambda bids, out: (
        [str(bids), str(out), "group"],
        "run the level participant first",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_exit_code_2(
    mistake: str,
    bids: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trained_model, "READY_MODEL", tmp_path / "not_installed.softseg")
    words, said = MISTAKES[mistake](bids, tmp_path / "out")
    before = state(bids), state(MODEL)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("nnunet-softseg-bids: error: ")
    assert error.count("\n") == 1
    assert said in error
    assert (state(bids), state(MODEL)) == before
    assert not (tmp_path / "out/dataset_description.json").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], 0),
        (["a", "b", "subject"], 2),
        (["a", "b"], 2),
        (["a", "b", "group", "--label", "1"], 2),
    ],
)
def test_the_convention_of_bids_apps(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == code
    assert "nnunet-softseg-bids" in "".join(capsys.readouterr())


def test_the_validator_that_is_not_run_is_said_to_be_none(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(bids), str(tmp_path), "participant", "--skip-bids-validator"]) == 2
    assert "warning: --skip-bids-validator does nothing" in capsys.readouterr().err


@given(st.lists(st.text(max_size=8), unique=True, max_size=5))
def test_labels_in_names_are_unlike_and_have_letters_and_digits_only(names: list[str]) -> None:
    words = label_words(names)
    assert list(words) == names
    assert len(set(words.values())) == len(names)
    assert all(word.isalnum() and word.isascii() for word in words.values())


def test_the_page_of_the_group_escapes_every_name() -> None:
    odd = '<img src="x">'
    values = [f"sub-01{odd}", odd, odd, odd, odd, 1, 10.0, 1.0, 9.0, 100.0, odd]
    table = pd.DataFrame([dict(zip(COLUMNS, values, strict=True))])
    html = _page(GroupReport(Path(), table, {odd: odd}, {odd: [odd]}))
    assert odd not in html
    assert "&lt;img" in html

"""Who is a case, which file is whose, what a file may hold, and the measures of one method."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from prisms import SHAPE, case_ids, prism, references, write, write_all

from nnunet_softseg.cli import main
from nnunet_softseg.errors import UserError
from nnunet_softseg.evaluation.cases import describe_cases, read_case_table
from nnunet_softseg.evaluation.evaluate import case_areas, evaluate, mark_region
from nnunet_softseg.evaluation.maps import LabelMap, on_grid_of, read_map
from nnunet_softseg.evaluation.tables import CASE_COLUMNS, RELIABILITY_COLUMNS, SLICE_COLUMNS
from nnunet_softseg.io.case_files import REPORT, Case, check_pattern, list_files
from nnunet_softseg.io.case_matching import companion_files, prediction_files, reference_files
from nnunet_softseg.metrics.overlap import case_measures

EMPTY = np.zeros(SHAPE)


def quiet(prediction: Path, reference: Path, output: Path, **options: Any) -> Any:
    return evaluate(prediction, reference, output, num_processes=1, progress=False, **options)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return folder


# Cases


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sub-01_T2w", ("sub-01", "", "T2w")),
        ("sub-01_ses-M2_T1w", ("sub-01", "ses-M2", "T1w")),
        ("sub-01_mt-on", ("sub-01", "", "mt-on")),
        ("sub-01_flip-1_mt-on_MTS", ("sub-01", "", "mt-on")),
        ("sub-01_acq-sag_T2w", ("sub-01", "", "T2w")),
        ("SC_017", ("SC_017", "", "")),
    ],
)
def test_a_case_name_says_who_and_how(name: str, key: tuple[str, str, str]) -> None:
    (case,), warnings = describe_cases([name])
    assert case.key == key
    assert bool(warnings) == (name == "SC_017")


def test_two_images_of_one_suffix_are_told_apart_by_the_whole_name() -> None:
    names = ["sub-01_ses-1_run-1_T2w", "sub-01_ses-1_run-2_T2w", "sub-02_run-1_T2w", "sub-02_T1w"]
    repeated, _ = describe_cases(names)  # only a further scan that nothing else tells apart is a session
    assert [case.key for case in repeated] == [
        ("sub-01", "ses-1", "T2w"), ("sub-01", "ses-1_run-2", "T2w"),
        ("sub-02", "", "T1w"), ("sub-02", "", "T2w"),
    ]  # fmt: skip
    cases, _ = describe_cases(["sub-01_acq-sag_T2w", "sub-01_acq-ax_T2w"])
    assert [case.contrast for case in cases] == ["acq-ax_T2w", "acq-sag_T2w"]
    names = ["sub-01_acq-sag_run-1_T2w", "sub-01_acq-sag_run-2_T2w", "sub-01_acq-ax_T2w"]
    cases, _ = describe_cases(names)  # sagittal and axial are no sessions of one contrast
    assert {case.contrast for case in cases} >= {"acq-ax_T2w", "acq-sag_run-1_T2w"}


def test_a_scan_that_everybody_repeats_leaves_the_contrasts_of_each_together() -> None:
    names = [f"sub-0{number}_{name}" for number in (1, 2) for name in ("run-1_T2w", "run-2_T2w", "T1w")]
    cases, _ = describe_cases(names)
    for person in ("sub-01", "sub-02"):
        sessions = {case.contrast: case.session for case in cases[::-1] if case.subject == person}
        assert sessions == {"T1w": "", "T2w": ""}


def table_file(folder: Path, *rows: str, columns: str = "case\tsubject\tcontrast") -> Path:
    file = folder / "subjects.tsv"
    file.write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")
    return file


def test_a_table_says_what_names_do_not(tmp_path: Path) -> None:
    table = read_case_table(table_file(tmp_path, "SC_1\tanna\tT1w", "SC_2\tanna\tT2w", "SC_9\tbob\tT1w"))
    cases, warnings = describe_cases(["SC_2", "SC_1"], table)
    assert cases == (Case("SC_1", "anna", "", "T1w"), Case("SC_2", "anna", "", "T2w"))
    assert "SC_9" in warnings[0]


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        ("case\tsubject", ["a\tb"], "add contrast"),
        ("case\tsubject\tcontrast", ["a\t\tT1w"], "line 2"),
        ("case\tsubject\tcontrast", ["a\ts\tT1w", "a\ts\tT2w"], "a more than once"),
        ("case\tsubject\tcontrast", ["b\ts\tT1w"], "a: add 1 rows"),
        ("case\tsubject\tcontrast", ["a\ts\tT1w", "b\ts\tT1w"], "one case per subject.*a, b for s T1w"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    tmp_path: Path, columns: str, rows: list[str], message: str
) -> None:
    wanted = ["a", "b"] if len(rows) == 2 and rows[1].startswith("b") else ["a"]
    with pytest.raises(UserError, match=message):
        describe_cases(wanted, read_case_table(table_file(tmp_path, *rows, columns=columns)))


# Files


def cases_of(*names: str) -> list[Case]:
    return list(describe_cases(names)[0])


def found_names(folder: Path, *case_names: str, pattern: str | None = None) -> dict[str, str]:
    found = prediction_files(list_files(folder), cases_of(*case_names), (1,), pattern)
    return {case: list_files(folder).relative(path) for (case, _), path in found.paths.items()}


def test_one_is_not_ten(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1_T2w_seg.nii.gz", "sub-10_T2w_seg.nii.gz", "sub-1_T2w-x_seg.nii.gz")
    assert found_names(tmp_path, "sub-1_T2w", "sub-10_T2w", "sub-100_T2w") == {
        "sub-1_T2w": "sub-1_T2w_seg.nii.gz",
        "sub-10_T2w": "sub-10_T2w_seg.nii.gz",
    }


def test_a_longer_case_keeps_its_files(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1_T2w_seg.nii.gz", "sub-1_T2w_acq2_seg.nii.gz")
    found = found_names(tmp_path, "sub-1_T2w", "sub-1_T2w_acq2")
    assert found["sub-1_T2w"] == "sub-1_T2w_seg.nii.gz"
    assert found["sub-1_T2w_acq2"] == "sub-1_T2w_acq2_seg.nii.gz"


def test_soft_maps_come_first_and_are_never_mixed_with_label_maps(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "soft/a_0001.nii.gz", "dataset.json", "a.pkl")
    found = prediction_files(list_files(tmp_path), cases_of("a", "b"), (1,))
    assert set(found.paths) == {("a", 1)}
    assert found.way.startswith("soft maps")
    assert list(found.missing) == ["b"]
    assert len(list_files(tmp_path).passed_over) == 2


def test_soft_maps_of_derivatives_come_before_the_label_maps_beside_them(tmp_path: Path) -> None:
    """dseg.tsv says which label is which; names in files have letters and digits alone."""
    for session in ("ses-1", "ses-2"):
        start = f"sub-01/{session}/anat/sub-01_{session}_T2w"
        touch(
            tmp_path,
            *(f"{start}_{end}.nii.gz" for end in ("dseg", "label-cord_probseg", "label-greymatter_probseg")),
        )
    (tmp_path / "dseg.tsv").write_text("index\tname\n1\tgrey matter\n2\tcord\n")
    cases = cases_of("sub-01_ses-1_T2w", "sub-01_ses-2_T2w")
    found = prediction_files(list_files(tmp_path), cases, (1, 2))
    names = {key: path.name for key, path in found.paths.items()}
    assert names == {
        (f"sub-01_{session}_T2w", value): f"sub-01_{session}_T2w_label-{word}_probseg.nii.gz"
        for session in ("ses-1", "ses-2")
        for value, word in ((1, "greymatter"), (2, "cord"))
    }
    (tmp_path / "dseg.tsv").unlink()
    with pytest.raises(UserError, match="expected one file of case sub-01_ses-1_T2w, label 1, found 2"):
        prediction_files(list_files(tmp_path), cases, (1,))


@pytest.mark.parametrize(
    "names",
    [
        ("sub-01_T2w.nii.gz", "sub-01_mt-on.nii"),
        ("sub-01_T2w_0001.nii.gz", "sub-01_mt-on_0001.nii.gz"),
        ("sub-01_T2w_pred.nii.gz", "sub-01_mt-on_pred.nii.gz"),
        ("sub-01/anat/sub-01_T2w_seg-manual.nii.gz", "sub-01/anat/sub-01_flip-1_mt-on_MTS_seg-manual.nii.gz"),
    ],
)
def test_files_of_other_tools_are_matched_by_name(tmp_path: Path, names: tuple[str, str]) -> None:
    touch(tmp_path, *names, "README.md", ".hidden.nii.gz", ".cache/sub-01_T2w.nii.gz")
    if names[1].endswith("MTS_seg-manual.nii.gz"):
        # one way for all of a folder: by prefix, only the first would be found
        (tmp_path / names[0]).rename(tmp_path / "sub-01/anat/sub-01_rec-x_T2w_seg-manual.nii.gz")
        names = ("sub-01/anat/sub-01_rec-x_T2w_seg-manual.nii.gz", names[1])
    found = found_names(tmp_path, "sub-01_T2w", "sub-01_mt-on")
    assert found == {"sub-01_T2w": names[0], "sub-01_mt-on": names[1]}


@pytest.mark.parametrize("with_table", [False, True])
def test_a_prediction_of_another_run_is_none_of_the_case(tmp_path: Path, with_table: bool) -> None:
    touch(tmp_path / "p", "sub-01_run-2_T2w_seg.nii.gz", "sub-02_acq-sag_run-1_T2w_seg.nii.gz")
    names = [f"sub-0{number}_run-1_T2w" for number in (1, 2)]
    rows = [f"{name}\t{name[:6]}\tT2w" for name in names]
    table = read_case_table(table_file(tmp_path, *rows)) if with_table else None
    found = prediction_files(list_files(tmp_path / "p"), describe_cases(names, table)[0], (1,))
    assert [file.name for file in found.paths.values()] == ["sub-02_acq-sag_run-1_T2w_seg.nii.gz"]
    assert list(found.missing) == ["sub-01_run-1_T2w"]


def test_two_files_for_a_case_are_refused_and_a_pattern_chooses(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01_T2w_seg.nii.gz", "sub-01_T2w_centerline.nii.gz")
    with pytest.raises(UserError, match=r"found 2: .*centerline.*--pattern"):
        found_names(tmp_path, "sub-01_T2w")
    assert found_names(tmp_path, "sub-01_T2w", pattern="{case}_seg.nii.gz") == {
        "sub-01_T2w": "sub-01_T2w_seg.nii.gz"
    }


def test_a_pattern_may_tell_folders_subjects_and_labels(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/T2w/out_0001.nii.gz", "sub-01/T2w/out_0002.nii.gz", "sub-10/T2w/out_0001.nii.gz")
    found = found_names(tmp_path, "sub-01_T2w", pattern="{subject}/{contrast}/*_{label}.nii.gz")
    assert found == {"sub-01_T2w": "sub-01/T2w/out_0001.nii.gz"}


@pytest.mark.parametrize("share", [1, 0.9])
@pytest.mark.parametrize(("of_reference", "of_prediction"), [("0002", "0002"), ("2", "0002"), ("02", "2")])
def test_a_file_whose_label_a_pattern_tells_holds_that_label(
    tmp_path: Path, of_reference: str, of_prediction: str, share: float
) -> None:
    """Masks and fractions, 5 and 3 voxels wide: Dice is 2 * 3 / (5 + 3)."""
    pattern = "{case}_lab-{label}.nii.gz"
    wide, narrow = (share * prism(width) for width in (5, 3))
    write_all(tmp_path / "r", {"a_lab-1": wide, f"a_lab-{of_reference}": wide})
    write_all(tmp_path / "p", {"a_lab-0001": wide, f"a_lab-{of_prediction}": narrow})
    found = quiet(
        tmp_path / "p", tmp_path / "r", tmp_path / "out", pattern=pattern, reference_pattern=pattern
    )
    assert found.cases.set_index("label")["dice"].to_dict() == {1: 1.0, 2: 0.75}


def test_a_label_in_a_pattern_is_a_whole_number(tmp_path: Path) -> None:
    touch(tmp_path / "p", "a_seg12.nii.gz")
    assert found_names(tmp_path / "p", "a", pattern="{case}_*{label}.nii.gz") == {}
    cases = cases_of("a")
    found = prediction_files(list_files(tmp_path / "p"), cases, (1, 2, 12), "{case}_*{label}*.nii.gz")
    assert found.missing == {
        "a": "no file with label 1, 2 of this case (file names that match {case}_*{label}*.nii.gz)"
    }
    assert reference_files(list_files(tmp_path / "p"), pattern="{case}_*{label}.nii.gz").labels == (12,)


def test_one_file_is_of_the_label_that_a_pattern_tells(tmp_path: Path) -> None:
    file = touch(tmp_path, "a_lab-1.nii.gz") / "a_lab-1.nii.gz"
    found = prediction_files(list_files(file), cases_of("a"), (1, 2), "{case}_lab-{label}.nii.gz")
    assert list(found.missing) == ["a"]


@pytest.mark.parametrize("pattern", ["seg.nii.gz", "{name}.nii.gz", "{case}{x}"])
def test_a_pattern_without_a_case_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match=r"expected \{case\} in it"):
        check_pattern(pattern)


def test_a_case_name_is_no_regular_expression(tmp_path: Path) -> None:
    touch(tmp_path, "a+b(1)_seg.nii.gz", "aab1_seg.nii.gz")
    assert found_names(tmp_path, "a+b(1)", pattern="{case}_seg.nii.gz") == {"a+b(1)": "a+b(1)_seg.nii.gz"}


def test_references_tell_cases_and_labels(tmp_path: Path) -> None:
    touch(tmp_path := tmp_path / "soft", "x_0001.nii.gz", "x_0002.nii.gz", "y_0001.nii.gz", "y_0002.nii.gz")
    paths, labels, _ = reference_files(list_files(tmp_path))
    assert labels == (1, 2)
    assert {key: path.name for key, path in paths.items()}["y", 2] == "y_0002.nii.gz"
    assert set(reference_files(list_files(tmp_path), labels=[2])[0]) == {("x", 2), ("y", 2)}


def test_a_pattern_of_references_names_each_field_as_often_as_it_likes(tmp_path: Path) -> None:
    touch(tmp_path, "a/a_0002.nii.gz", "a/b_0002.nii.gz", "b/b_0002.nii.gz")
    found = reference_files(list_files(tmp_path), pattern="{case}/{case}_{label}.nii.gz")
    names = {case: file.relative_to(tmp_path).as_posix() for (case, _), file in found.paths.items()}
    assert names == {"a": "a/a_0002.nii.gz", "b": "b/b_0002.nii.gz"}
    assert found.labels == (2,)
    with pytest.raises(UserError, match=r"pattern '\{subject\}_T2w.nii.gz': expected \{case\} in it"):
        quiet(tmp_path, tmp_path, tmp_path / "out", reference_pattern="{subject}_T2w.nii.gz")


def test_references_of_bids_lose_what_a_derivative_adds(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1/anat/sub-1_T2w_label-SC_desc-softseg_probseg.nii.gz")
    paths, labels, _ = reference_files(list_files(tmp_path))
    assert (set(paths), labels) == ({("sub-1_T2w", 1)}, (1,))


def test_reference_folders_that_do_not_tell_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "twice", "sub-1_T2w_seg.nii.gz", "sub-1_T2w_label-SC_seg.nii.gz")
    with pytest.raises(UserError, match="expected one reference of case sub-1_T2w, found 2"):
        reference_files(list_files(tmp_path / "twice"))
    only, *_ = reference_files(list_files(tmp_path / "twice"), pattern="{case}_label-SC_seg.nii.gz")
    assert [path.name for path in only.values()] == ["sub-1_T2w_label-SC_seg.nii.gz"]
    with pytest.raises(UserError, match="imagesTs"):
        reference_files(list_files(touch(tmp_path / "images", "sub-1_T2w_0000.nii.gz")))
    with pytest.raises(UserError, match="0 NIfTI files and 1 others"):
        reference_files(list_files(touch(tmp_path / "notes", "README.txt")))
    with pytest.raises(UserError, match="label 2, found none"):
        reference_files(
            list_files(touch(tmp_path / "soft", "a_0001.nii.gz", "a_0002.nii.gz", "b_0001.nii.gz"))
        )
    with pytest.raises(UserError, match="found nothing"):
        list_files(tmp_path / "nowhere")


def test_levels_and_images_go_with_their_cases(tmp_path: Path) -> None:
    touch(
        tmp_path / "truth",
        "sub-01_T2w_desc-levels_dseg.nii.gz",
        "sub-01_T2w_probseg.nii.gz",
        "sub-01_flip-1_mt-on_MTS_desc-levels_dseg.nii.gz",
    )
    cases = cases_of("sub-01_T2w", "sub-01_mt-on", "sub-02_T2w")
    names = {case.case_id: [f"{case.case_id}_0000", case.case_id] for case in cases}
    levels = companion_files(list_files(tmp_path / "truth"), names, "level", cases=cases)
    assert {case: file.name for case, file in levels.items()} == {
        "sub-01_T2w": "sub-01_T2w_desc-levels_dseg.nii.gz",
        "sub-01_mt-on": "sub-01_flip-1_mt-on_MTS_desc-levels_dseg.nii.gz",
    }
    touch(tmp_path / "images", "sub-01_T2w_0000.nii.gz", "sub-02_T2w.nii.gz")
    images = companion_files(list_files(tmp_path / "images"), names, "image", cases=cases)
    assert {case: file.name for case, file in images.items()} == {
        "sub-01_T2w": "sub-01_T2w_0000.nii.gz",
        "sub-02_T2w": "sub-02_T2w.nii.gz",
    }


# Maps


@pytest.mark.parametrize(
    ("dtype", "slope"),
    [(np.uint8, None), (np.int16, None), (np.float32, None), (np.float64, None), (np.int16, 0.5)],
)
def test_a_mask_may_be_of_any_type(tmp_path: Path, dtype: Any, slope: float | None) -> None:
    mask = prism(7)
    file = write(tmp_path / "a.nii.gz", mask, dtype=dtype, slope=slope)
    label_map = read_map(file, 1)
    assert (label_map.values == mask).all()
    assert label_map.kind == "hard"


def test_fractions_stored_as_integers_with_a_slope_stay_fractions(tmp_path: Path) -> None:
    soft = prism(6.5)
    label_map = read_map(write(tmp_path / "a.nii.gz", soft, dtype=np.uint8, slope=1 / 200), 1)
    assert np.abs(label_map.values - soft).max() <= 1 / 400 + 1e-6  # half a step of the integers
    assert label_map.kind == "soft"


def test_a_single_volume_of_four_axes_is_taken(tmp_path: Path) -> None:
    assert read_map(write(tmp_path / "a.nii.gz", prism()[..., None]), 1).values.shape == SHAPE


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (255 * prism(7), r"whole numbers \(0, 255\): divide it by 255, or choose it with --label"),
        (3 * prism(7), r"whole numbers \(0, 3\): divide it by 3, or choose it with --label"),
        (1.2 * prism(6.5), "clip it to"),
        (np.round(100 * np.random.default_rng(0).random(SHAPE)), "divide it by 100"),
        (300 * prism(6.61), "divide it by 300"),
        (-0.2 * prism(7), "outside"),
        (np.where(prism(7) > 0, np.nan, 0), "expected finite values, found 672 voxels"),
        (np.stack([prism(), prism()], axis=-1), "three axes"),
    ],
)
def test_values_that_are_no_fractions_are_refused_with_the_file(
    tmp_path: Path, values: Any, message: str
) -> None:
    file = write(tmp_path / "odd.nii.gz", values)
    with pytest.raises(UserError, match=message) as error:
        read_map(file, 1)
    assert "odd.nii.gz" in str(error.value)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "cut.nii.gz", np.random.default_rng(0).random(SHAPE))
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cut\.nii\.gz"):
        read_map(file, 1)


def test_a_label_map_gives_each_of_its_labels(tmp_path: Path) -> None:
    first, second = prism(7), np.roll(prism(7), 7, axis=1)
    file = write(tmp_path / "a.nii.gz", np.where(second > 0, 2, first))
    assert (read_map(file, 2, (1, 2)).values == (second > 0)).all()
    assert (read_map(file, 2, (2,), chosen=True).values == (second > 0)).all()
    assert (read_map(file, 1, (1,), chosen=True).values == ((first > 0) & (second == 0))).all()
    scaled = write(tmp_path / "scaled.nii.gz", 3 * second, dtype=np.int16, slope=0.1)  # 3.0000001
    assert (read_map(scaled, 3, (3,), chosen=True).values == (second > 0)).all()
    soft = write(tmp_path / "b.nii.gz", prism(6.5))
    with pytest.raises(UserError, match="one file per label"):
        read_map(soft, 2, (1, 2))


def test_a_label_that_looks_like_a_step_of_percent_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `csa` and `fuse` tell it; one line, though two labels are taken of the file."""
    inside, steps = prism(7) > 0, np.random.default_rng(0).choice([20, 50, 80, 100], SHAPE)
    prediction, reference = (
        tmp_path / "prediction" / "sub-01.nii.gz",
        tmp_path / "reference" / "sub-01.nii.gz",
    )
    write(prediction, np.where(inside, steps, 0))
    write(reference, np.where(inside, 50 + (steps > 50), 0))
    call = ["evaluate", "-i", prediction, "-g", reference, "-o", tmp_path / "out", "-np", 1, "--label", 50]
    assert main([str(word) for word in call]) == 0
    told = capsys.readouterr().err
    assert "prediction/sub-01.nii.gz" in told
    assert told.count("label 50 looks like one step of fractions") == 1
    assert "nothing, if it is a label; else divide it by 100" in told


def flipped(label_map: LabelMap, codes: str) -> LabelMap:
    image = label_map.as_nifti()
    transform = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(transform)
    return LabelMap(Path("turned"), np.asarray(turned.dataobj, dtype=np.float32), turned.affine)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "AIL"])
def test_another_orientation_is_the_same_grid(codes: str) -> None:
    affine = np.diag([0.5, 0.7, 3, 1])
    affine[:3, 3] = (-11, 22, 33)
    values = np.random.default_rng(5).random((4, 5, 6)).astype(np.float32)
    reference = LabelMap(Path("reference"), values, affine)
    back, resampled = on_grid_of(flipped(reference, codes), reference, resample=False)
    assert not resampled
    assert (back.values == values).all()
    assert np.allclose(back.affine, affine)


def test_another_grid_is_refused_or_resampled_linearly() -> None:
    coarse_affine, fine_affine = np.diag([1.0, 1, 2, 1]), np.eye(4)
    coarse = LabelMap(
        Path("coarse"),
        np.linspace(0, 1, 8, dtype=np.float32)[None, None] * np.ones((3, 3, 1), np.float32),
        coarse_affine,
    )
    fine = LabelMap(Path("fine"), np.zeros((3, 3, 15), dtype=np.float32), fine_affine)
    with pytest.raises(
        UserError,
        match=r"3 x 3 x 15 voxels of 1 x 1 x 1 mm.*found 3 x 3 x 8 voxels of 1 x 1 x 2 mm.*--resample",
    ):
        on_grid_of(coarse, fine, resample=False)
    moved, resampled = on_grid_of(coarse, fine, resample=True)
    assert resampled
    assert np.allclose(moved.values[1, 1], np.linspace(0, 1, 15), atol=1e-6)  # linear between the slices


def test_the_same_shape_elsewhere_is_another_grid() -> None:
    shifted = np.eye(4)
    shifted[0, 3] = 1
    with pytest.raises(UserError, match="mix-up"):
        on_grid_of(
            LabelMap(Path("a"), prism(), np.eye(4)), LabelMap(Path("b"), prism(), shifted), resample=False
        )


# Areas


def slices_of(*images: tuple[str, str, str, list[float], list[float]], step: float = 5.0) -> pd.DataFrame:
    """Return a table of slices from (method, case, contrast, heights, areas) of one subject."""
    rows = [
        {
            "method": method,
            "case": case,
            "subject": "s",
            "session": "",
            "contrast": contrast,
            "label": 1,
            "slice": round(z / step),
            "z_mm": z,
            "level": 2 if z < 20 else 3,
            "csa_mm2": area,
            "csa_hard_mm2": area,
        }
        for method, case, contrast, heights, areas in images
        for z, area in zip(heights, areas, strict=True)
    ]
    return pd.DataFrame(rows).astype({"level": "Int64"})


NAN = float("nan")


def test_without_levels_contrasts_are_measured_over_the_heights_they_share() -> None:
    heights = [0.0, 5, 10, 15, 20]
    table = slices_of(
        ("reference", "s_T1w", "T1w", heights, [10, 20, 30, 40, 50]),
        ("reference", "s_T2w", "T2w", heights[1:], [20, 30, 40, 50]),
        ("a", "s_T1w", "T1w", heights, [10, 20, NAN, 40, 50]),
        ("a", "s_T2w", "T2w", heights[1:], [22, 30, 40, 50]),
    )
    marked, warnings = mark_region(table, None)
    areas = case_areas(marked).set_index("case")
    assert warnings == []
    assert areas.loc["s_T1w", "csa_region"] == "common heights"
    assert areas.loc["s_T1w", "reference_csa_mm2"] == (20 + 30 + 40 + 50) / 4
    # the slice that the method leaves empty counts as 0: passed over, the error would be + 1.67
    assert areas.loc["s_T1w", "csa_mm2"] == (20 + 0 + 40 + 50) / 4
    assert areas.loc["s_T1w", "csa_missed_slices"] == 1
    assert areas.loc["s_T1w", "csa_error_percent"] == pytest.approx(100 * -7.5 / 35)
    assert areas.loc["s_T2w", "abs_csa_error_mm2"] == 0.5


def test_a_faint_slice_is_not_a_missed_one() -> None:
    table = slices_of(
        ("reference", "s_T1w", "T1w", [0.0, 5, 10], [10, 20, 30]),
        ("a", "s_T1w", "T1w", [0.0, 5, 10], [10, 18, NAN]),
    )
    table.loc[(table["method"] == "a") & (table["z_mm"] == 5), "csa_hard_mm2"] = NAN  # nothing above 0.5
    areas = case_areas(mark_region(table, None)[0]).iloc[0]
    assert (areas["csa_slices"], areas["csa_missed_slices"]) == (3, 1)
    assert areas["csa_mm2"] == pytest.approx(28 / 3)
    assert areas["csa_hard_mm2"] == pytest.approx(10 / 3)


def test_contrasts_that_share_too_little_keep_their_own_slices_and_it_is_said() -> None:
    table = slices_of(
        ("reference", "s_T1w", "T1w", [0.0, 5, 10], [10, 20, 30]),
        ("reference", "s_T2w", "T2w", [10.0, 15], [30, 40]),
        ("a", "s_T1w", "T1w", [0.0, 5, 10], [10, 20, 30]),
        ("a", "s_T2w", "T2w", [10.0, 15], [30, 40]),
    )
    marked, warnings = mark_region(table, None)
    areas = case_areas(marked).set_index("case")
    assert areas["csa_region"].tolist() == ["own slices", "own slices"]
    assert areas.loc["s_T1w", "csa_mm2"] == 20
    assert "share less than 10 mm" in warnings[0]


def test_with_levels_only_those_count() -> None:
    table = slices_of(
        ("reference", "s_T1w", "T1w", [0.0, 5, 20], [10, 20, 70]),
        ("a", "s_T1w", "T1w", [0.0, 5, 20], [10, 26, 90]),
    )
    areas = case_areas(mark_region(table, (2,))[0])
    assert areas["reference_csa_mm2"].tolist() == [15]
    assert areas["csa_mm2"].tolist() == [18]
    assert areas["csa_region"].tolist() == ["C2"]
    without, warnings = mark_region(table, (5,))
    assert np.isnan(case_areas(without)["csa_mm2"]).all()
    assert "no slice of C5" in warnings[0]


# One method


def test_measures_of_a_method_are_those_of_the_geometry(tmp_path: Path) -> None:
    names = case_ids(["01", "02"], ["T1w", "T2w"])
    reference = references(tmp_path / "softLabelsTs", names)  # 6 x 6.5 voxels
    prediction = write_all(tmp_path / "pred", {name: prism(7) for name in names}, dtype=np.uint8)
    result = quiet(prediction, reference, tmp_path / "out")
    cases = result.cases
    assert len(cases) == 4
    assert np.allclose(cases["csa_mm2"], 42)
    assert np.allclose(cases["reference_csa_mm2"], 39)
    assert np.allclose(cases["abs_csa_error_mm2"], 3)
    assert np.allclose(cases["csa_error_percent"], 100 * 3 / 39)
    assert np.allclose(cases["csa_hard_error_mm2"], 0)  # 0.75 is > 0.5: 6 x 7 voxels, too
    assert np.allclose(cases["dice"], 1)
    assert np.allclose(cases["soft_dice"], 2 * 39 / (39 + 42))
    assert np.allclose(cases["rve_percent"], 100 * 3 / 39)
    assert np.allclose(cases["boundary_mae"], 0.25)
    assert set(cases["kind"]) == {"hard"}
    assert result.reliability.set_index("bin_low").loc[0.9, "mean_reference"] == pytest.approx(39 / 42)
    written = pd.read_csv(tmp_path / "out" / "cases.csv")
    assert list(written) == list(CASE_COLUMNS)
    assert written["csa_mm2"].tolist() == pytest.approx([42] * 4)
    assert list(pd.read_csv(tmp_path / "out" / "slices.csv")) == list(SLICE_COLUMNS)
    assert list(pd.read_csv(tmp_path / "out" / "reliability.csv")) == list(RELIABILITY_COLUMNS)


def test_json_says_what_made_it_and_what_columns_mean(tmp_path: Path) -> None:
    reference = references(tmp_path / "ref", ["sub-01_T1w"])
    quiet(reference, reference, tmp_path / "out")
    described = json.loads((tmp_path / "out" / "cases.json").read_text())
    assert described["made_by"]["name"] == "nnunet-softseg evaluate"
    assert described["made_by"]["parameters"]["reference"] == str(reference)
    assert set(described["cases"][0]) == set(described["columns"])
    for name, columns in described["columns_of"].items():
        assert list(pd.read_csv(tmp_path / "out" / name)) == list(columns)
    assert described["columns_of"].keys() == {"slices.csv", "instances.csv", "reliability.csv"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["labels"]["label 1"]["soft_dice"] == {"mean": 1, "sd": None, "median": 1, "num_cases": 1}


def test_an_empty_prediction_is_the_worst_there_is_and_json_can_hold_it(tmp_path: Path) -> None:
    reference = references(tmp_path / "ref", ["sub-01_T1w"])
    prediction = write_all(tmp_path / "pred", {"sub-01_T1w": EMPTY})
    row = quiet(prediction, reference, tmp_path / "out").cases.iloc[0]
    assert (row["dice"], row["csa_mm2"], row["abs_csa_error_percent"]) == (0, 0, 100)
    assert np.isinf(row["asd_mm"])
    assert row["csa_missed_slices"] == row["csa_slices"] == 16
    assert json.loads((tmp_path / "out" / "cases.json").read_text())["cases"][0]["asd_mm"] == "inf"


def test_an_empty_reference_has_no_area(tmp_path: Path) -> None:
    names = ["sub-01_T1w", "sub-02_T1w"]
    reference = write_all(tmp_path / "ref", dict(zip(names, [EMPTY, prism()], strict=True)))
    prediction = write_all(tmp_path / "pred", dict.fromkeys(names, prism(7)))
    cases = quiet(prediction, reference, tmp_path / "out").cases.set_index("case")
    assert np.isnan(
        cases.loc["sub-01_T1w", ["csa_mm2", "abs_csa_error_mm2", "rve_percent"]].astype(float)
    ).all()
    assert cases.loc["sub-01_T1w", "csa_slices"] == 0
    assert cases.loc["sub-02_T1w", "csa_error_mm2"] == pytest.approx(6)


def test_several_labels_are_each_measured(tmp_path: Path) -> None:
    first, second = prism(7), np.roll(prism(5), 5, axis=1)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "cord": 1, "lesion": 2}}))
    reference = write_all(tmp_path / "softLabelsTs", {"sub-01_T1w_0001": first, "sub-01_T1w_0002": second})
    prediction = write_all(tmp_path / "pred", {"sub-01_T1w": np.where(second > 0, 2, first)}, dtype=np.uint8)
    result = quiet(prediction, reference, tmp_path / "out")
    assert result.labels == {1: "cord", 2: "lesion"}
    cases = result.cases.set_index("label")
    assert cases["dice"].tolist() == [
        pytest.approx(2 * 6 / 13),
        1,
    ]  # the lesion takes one of the cord's 7 columns
    assert cases["reference_csa_mm2"].tolist() == pytest.approx([42, 30])


def test_levels_that_end_are_told_and_so_are_the_slices(tmp_path: Path) -> None:
    names = ("sub-01_T1w", "sub-02_T1w")
    reference, prediction = references(tmp_path / "ref", names), references(tmp_path / "pred", names)
    heights = np.arange(SHAPE[2])
    levels = {name: np.broadcast_to(np.where(heights < 4, 3, 2), SHAPE) for name in names}
    levels["sub-02_T1w"] = np.where(levels["sub-02_T1w"] == 3, 0, levels["sub-02_T1w"])
    folder = write_all(tmp_path / "levels", levels, dtype=np.uint8)
    result = quiet(prediction, reference, tmp_path / "out", levels=folder, vert=(2, 3))
    told = "1 cases have a part of C2-C3 only, and the area of that: sub-02_T1w (C2)"
    assert told in result.warnings
    slices = result.cases.set_index("case")["csa_slices"]
    assert f"areas over C2-C3: 2 cases, {slices.min()} to {slices.max()} slices each" in result.as_text()
    assert slices["sub-01_T1w"] - slices["sub-02_T1w"] == np.count_nonzero(prism().any(axis=(0, 1))[:4]) > 0


def test_seven_patients_are_not_one_with_seven_labels(tmp_path: Path) -> None:
    """Ids end in four digits (nnU-Net's issues 830, 1871); the third prediction failed and is empty."""
    widths = {f"scan_{number:04d}": 3 + number % 3 for number in range(7)}
    reference = write_all(tmp_path / "labelsTs", {name: prism(wide) for name, wide in widths.items()})
    made = {name: prism(wide) * (name != "scan_0002") for name, wide in widths.items()}
    prediction = write_all(tmp_path / "pred", made, dtype=np.uint8)
    for options in ({}, {"labels": 1}):
        result = quiet(prediction, reference, tmp_path / "out", **options)
        assert list(result.labels) == [1]
        assert result.cases.set_index("case")["dice"].to_dict() == {
            name: float(name != "scan_0002") for name in widths
        }
        assert result.cases["subject"].nunique() == 7


def test_a_missing_prediction_and_one_of_nobody_are_told(tmp_path: Path) -> None:
    reference = references(tmp_path / "ref", ["sub-01_T1w", "sub-02_T1w", "sub-03_T1w"])
    (tmp_path / "ref/sub-02_T1w_0001.nii.gz").rename(tmp_path / "ref/sub-02_T1w_0001.NII.GZ")
    prediction = write_all(
        tmp_path / "pred", {"sub-01_T1w": prism(), "sub-03_T1w": prism(), "sub-9": prism()}
    )
    result = quiet(prediction, reference, tmp_path / "out")
    assert "prediction: 2 of 3 cases" in result.as_text()
    assert any("lacks 1 of 3 cases: sub-02_T1w" in warning for warning in result.warnings)
    assert any("belong to no case of the reference" in w and "sub-9.nii.gz" in w for w in result.warnings)


def test_regions_are_measured_by_name_where_they_are_known(tmp_path: Path) -> None:
    """A label map of white and grey matter holds the cord as both; a third of the slices is unknown."""
    cord, grey = prism(7), prism(3)
    labels = {"background": 0, "cord": [1, 2], "grey": 2, "ignore": 3}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "regions_class_order": [1, 2]}))
    painted = np.where(grey > 0, 2, cord)
    unknown = np.arange(SHAPE[2]) >= 2 * SHAPE[2] // 3
    maps = {"sub-01_T1w": np.where(unknown, 3, painted)}
    write_all(tmp_path / "labelsTs", maps, dtype=np.uint8)
    softs = {
        "sub-01_T1w_0001": np.where(unknown, 0, cord),
        "sub-01_T1w_0002": np.where(unknown, np.nan, grey),
    }
    reference = write_all(tmp_path / "softLabelsTs", softs)
    prediction = write_all(tmp_path / "pred", {"sub-01_T1w": np.where(unknown, 1, painted)}, dtype=np.uint8)
    for folder in (reference, tmp_path / "labelsTs"):
        result = quiet(prediction, folder, tmp_path / f"out_{folder.name}", labels=(1, 2))
        assert result.labels == {1: "cord", 2: "grey"}
        assert result.cases["dice"].tolist() == [1, 1]
        assert result.cases["rve_percent"].tolist() == [0, 0]
        near = result.reliability.groupby("label")["num_voxels"].sum()
        assert near.tolist() == [12 * (7 + 6) * 13, 12 * (3 + 6) * 13]  # 3 mm around, in 13 known slices


def test_labels_that_a_method_names_otherwise_are_not_compared_in_silence(tmp_path: Path) -> None:
    def named(folder: str, labels: dict[str, Any], **more: Any) -> Path:
        made = write_all(tmp_path / folder, {"sub-01_T1w": painted}, dtype=np.uint8)
        (made / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **labels}, **more}))
        return made

    painted = np.where(prism(3) > 0, 2, prism(7))
    reference = named("ref", {"wm": 1, "gm": 2})
    both: dict[str, Any] = {"labels": (1, 2)}
    with pytest.raises(
        UserError, match=r"/swapped: expected label 1 to be wm.*found gm in that of prediction"
    ):
        quiet(named("swapped", {"gm": 1, "wm": 2}), reference, tmp_path / "out", **both)
    result = quiet(named("other", {"white": 1, "gm": 2}), reference, tmp_path / "out", **both)
    assert "calls label 1 white, not wm as the reference's does" in result.warnings[0]
    one = quiet(tmp_path / "swapped", named("cord", {"cord": 1}), tmp_path / "out", labels=1)
    assert "calls label 1 gm, not cord" in one.warnings[0]
    nameless = references(tmp_path / "nameless", ["sub-01_T1w"])
    plain = quiet(tmp_path / "swapped", nameless, tmp_path / "out", labels=1)
    assert not any("calls label" in warning for warning in plain.warnings)
    # The reference's second label is the value 1 of a label map: all is right, whatever the number.
    regions = named("regions", {"gm": 2, "cord": [1, 2]}, regions_class_order=[2, 1])
    result = quiet(named("values", {"wm": 1, "gm": 2}), regions, tmp_path / "out", **both)
    assert result.cases["dice"].tolist() == [1, 1]


def test_what_a_label_map_ignores_lies_where_its_header_says(tmp_path: Path) -> None:
    """The label map is stored upside down: its first five slices, from below, are unknown."""
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "cord": 1, "ignore": 2}}))
    reference = write_all(tmp_path / "softLabelsTs", {"sub-01_T1w_0001": prism()})
    ignored = np.where(np.arange(SHAPE[2]) < 5, 2, prism(first=0) > 0.5).astype(np.uint8)
    stored = nib.load(reference / "sub-01_T1w_0001.nii.gz")
    flipped = stored.affine @ np.diag([1, 1, -1, 1])
    flipped[:3, 3] = (stored.affine @ [0, 0, SHAPE[2] - 1, 1])[:3]
    (tmp_path / "labelsTs").mkdir()
    file = tmp_path / "labelsTs" / "sub-01_T1w.nii.gz"
    nib.save(nib.Nifti1Image(ignored[:, :, ::-1], flipped), file)
    slices = quiet(reference, reference, tmp_path / "out").slices
    assert sorted(slices.loc[slices["method"] == "reference", "slice"]) == list(range(5, 18))
    nib.save(nib.Nifti1Image(ignored[:, :, 1:], stored.affine), file)
    with pytest.raises(UserError, match=r"labelsTs/sub-01_T1w.nii.gz: expected the grid of .*0001.nii.gz"):
        quiet(reference, reference, tmp_path / "other")


def test_levels_choose_the_slices(tmp_path: Path) -> None:
    values = np.concatenate([prism(6)[:, :, :10], prism(8)[:, :, 10:]], axis=2)
    reference = write_all(tmp_path / "ref", {"sub-01_T1w": values})
    levels = np.broadcast_to(np.where(np.arange(SHAPE[2]) < 10, 4, 2), SHAPE)
    write_all(tmp_path / "levels", {"sub-01_T1w_levels": levels}, dtype=np.uint8)
    of_c2 = quiet(reference, reference, tmp_path / "out", levels=tmp_path / "levels", vert="C2").cases
    assert of_c2["csa_mm2"].item() == pytest.approx(
        48, rel=0.01
    )  # the step in width bends the centreline a little
    assert (of_c2["csa_region"].item(), of_c2["csa_slices"].item()) == ("C2", 8)
    with pytest.raises(UserError, match="expected slices of C7 in at least one reference, found C2, C4"):
        quiet(reference, reference, tmp_path / "out", levels=tmp_path / "levels", vert=7)
    with pytest.raises(UserError, match="--levels"):
        quiet(reference, reference, tmp_path / "out", vert=2)


def test_cases_of_the_training_are_named(tmp_path: Path) -> None:
    names = case_ids(["01", "02", "03"], ["T1w"])
    reference = references(tmp_path / "ref", names)
    prediction = write_all(tmp_path / "pred", {name: prism(6.5) for name in names})
    seen = {"training_cases": {"0": ["sub-02_T2w", "sub-09_T1w"]}}  # another image of sub-02
    (prediction / REPORT).write_text(json.dumps(seen))
    warning = quiet(prediction, reference, tmp_path / "out").warnings[0]
    assert warning.startswith("prediction WAS TRAINED ON 1 of these cases, or on others of their subjects: ")
    assert "sub-02_T1w" in warning


def test_cases_of_the_training_are_named_where_a_table_tells_the_subjects(tmp_path: Path) -> None:
    """scan9 is of the training and has no reference; it is of the person of scan2."""
    names = ["scan1", "scan2", "scan3"]
    reference = references(tmp_path / "ref", names)
    prediction = write_all(tmp_path / "pred", {name: prism(6.5) for name in names})
    (prediction / REPORT).write_text(json.dumps({"training_cases": {"0": ["scan1"], "1": ["scan9"]}}))
    rows = ("scan1\tann\tT1w", "scan2\tbob\tT1w", "scan3\tcy\tT1w", "scan9\tbob\tT2w")
    table = table_file(tmp_path, *rows)
    warning = quiet(prediction, reference, tmp_path / "out", subjects=table).warnings[0]
    assert "WAS TRAINED ON 2 of these cases" in warning
    assert "scan1, scan2;" in warning


def test_inference_time_of_our_own_predictions_is_taken_over(tmp_path: Path) -> None:
    reference = references(tmp_path / "ref", ["sub-01_T1w", "sub-02_T1w"])
    prediction = references(tmp_path / "pred" / "soft", ["sub-01_T1w", "sub-02_T1w"])
    seconds = {"cases": {"sub-01_T1w": {"seconds": {"preprocess": 1.5, "forward": 2.0, "export": 0.25}}}}
    (tmp_path / "pred" / REPORT).write_text(json.dumps(seconds))
    for folder in (prediction, prediction.parent):
        cases = quiet(folder, reference, tmp_path / "out").cases
        assert cases["seconds"].tolist() == [3.75, pytest.approx(NAN, nan_ok=True)]


def test_only_own_files_of_the_output_folder_are_replaced(tmp_path: Path) -> None:
    reference = references(tmp_path / "ref", ["sub-01_T1w"])
    touch(tmp_path / "out", "cases.csv", "mine.txt")
    quiet(reference, reference, tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        "cases.csv",
        "slices.csv",
        "instances.csv",
        "reliability.csv",
        "cases.json",
        "summary.json",
        "mine.txt",
    }
    assert (tmp_path / "out" / "cases.csv").stat().st_size > 0


HOSTILE = (
    "sub-01_<script>alert(1)</script>".replace("/", "_"),
    'sub-02_it\'s "quoted", and\ttabbed',
    "sub-03_ümläut 脊髄 🦴",
    "sub-04_=cmd()",
    "sub-05_{case} [x] *",
)


def test_hostile_names_come_through_unharmed(tmp_path: Path) -> None:
    reference = references(tmp_path / "ref <b>", HOSTILE)
    prediction = write_all(tmp_path / "it's pred", dict.fromkeys(HOSTILE, prism(7)))
    quiet(prediction, reference, tmp_path / "out put")
    written = pd.read_csv(tmp_path / "out put" / "cases.csv", keep_default_na=False)
    assert sorted(written["case"]) == sorted(HOSTILE)
    assert written["subject"].nunique() == 5
    listed = json.loads((tmp_path / "out put" / "cases.json").read_text())["cases"]
    assert sorted(row["case"] for row in listed) == sorted(HOSTILE)


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_no_unicode_is_written_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"sub-01_T\xff1w")
    reference = tmp_path / "ref"
    reference.mkdir()
    plain = write(tmp_path / "plain.nii.gz", prism())
    try:
        shutil.copy(plain, reference / f"{name}.nii.gz")
    except OSError:
        pytest.skip("this file system takes Unicode only")
    quiet(reference, reference, tmp_path / "out")
    assert r"T\udcff1w" in (tmp_path / "out" / "cases.csv").read_text(encoding="utf-8")


def test_workers_give_what_one_process_gives(tmp_path: Path) -> None:
    names = case_ids(["01", "02"], ["T1w", "T2w"])
    reference = references(tmp_path / "ref", names)
    prediction = write_all(
        tmp_path / "pred", {name: prism(6 + place / 4) for place, name in enumerate(names)}
    )
    alone = quiet(prediction, reference, tmp_path / "one").cases
    parallel = evaluate(prediction, reference, tmp_path / "two", num_processes=2, progress=False).cases
    pd.testing.assert_frame_equal(alone, parallel)


# The command


def test_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = references(tmp_path / "ref", ["sub-01_T1w", "sub-02_T1w"])
    prediction = write_all(tmp_path / "pred", {"sub-01_T1w_seg": prism(7)})
    arguments = [
        "evaluate",
        "-i",
        str(prediction),
        "-g",
        str(reference),
        "-o",
        str(tmp_path / "out"),
        "-np",
        "1",
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "MOST OF THE TEST SET IS MISSING: prediction lacks 1 of 2 cases: sub-02_T1w" in printed.err
    assert "abs_csa_error_mm2" in printed.out
    missing = json.loads((tmp_path / "out" / "summary.json").read_text())["missing"]
    assert [row["case"] for row in missing] == ["sub-02_T1w"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-i", "{empty}"], "expected predictions of prediction, found 0 NIfTI files and 0 others"),
        (["-i", "{other}"], r"such as sub-01_T1w, found 1 images \(sub-09_T1w.nii.gz\)"),
        (["-i", "{nowhere}"], "found nothing"),
        (["-i", "{good}", "--label", "0"], "0 is the background"),
        (["-i", "{good}", "--tolerance-mm", "-1"], "0 mm or more"),
        (["-i", "{good}", "--pattern", "x"], "expected {case}"),
        (["-i", "{good}", "--subjects", "{good}"], "tab-separated"),
        (["-i", "{shifted}"], "expected the grid of"),
    ],
)
def test_mistakes_of_a_user_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    reference = references(tmp_path / "good", ["sub-01_T1w"])
    (tmp_path / "empty").mkdir()
    write_all(tmp_path / "other", {"sub-09_T1w": prism()})
    shifted = np.eye(4)
    shifted[2, 3] = 5
    write_all(tmp_path / "shifted", {"sub-01_T1w": prism()}, affine=shifted)
    places = {name: str(tmp_path / name) for name in ("empty", "other", "nowhere", "good", "shifted")}
    filled = [option if option == "x" else option.format(**places) for option in options]
    assert main(["evaluate", *filled, "-g", str(reference), "-o", str(tmp_path / "out"), "-np", "1"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("nnunet-softseg: error: ")
    assert re.search(message, error), error


# Real data


def test_real_masks_agree_with_themselves(real_data: Path, tmp_path: Path) -> None:
    labels = real_data / "bids" / "derivatives" / "labels"
    result = quiet(labels, labels, tmp_path / "out")
    assert set(result.cases["contrast"]) >= {"T1w", "T2w", "T2star", "mt-on", "mt-off"}
    assert (result.cases["soft_dice"] == 1).all()
    assert (result.cases["abs_csa_error_mm2"] == 0).all()
    assert result.cases["csa_mm2"].between(40, 110).all()  # adult cervical cords


def test_real_levels_give_an_area_per_level(real_data: Path, tmp_path: Path) -> None:
    template = real_data / "template"
    mask = next((real_data / "bids" / "derivatives" / "labels").rglob("*mt-on*"))
    options = {"levels": template / "sub-sct01_mt_PAM50_levels.nii.gz", "vert": ("C4", "C5")}
    cases = quiet(template / "sub-sct01_mt_PAM50_cord.nii.gz", mask, tmp_path / "out", **options).cases
    assert cases["csa_region"].item() == "C4-C5"
    # registered to this very mask: within 5 % of it
    assert abs(cases["csa_error_percent"].item()) < 5


# Geometry, and files that cannot be used


SHEARED = np.array([[0.5, 0, 0, 0], [0, 0.5, 2 * np.tan(np.radians(20)), 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])


def test_volumes_of_sheared_axes_are_the_determinants(tmp_path: Path) -> None:
    """As a CT with a tilted gantry: voxels of 0.5 x 0.5 x 2 mm3, however long the third step is."""
    reference = write(tmp_path / "ref" / "sub-01_T2w_0001.nii.gz", prism(6.5), affine=SHEARED)
    prediction = write(tmp_path / "pred" / "sub-01_T2w_0001.nii.gz", prism(6), affine=SHEARED)
    evaluation = quiet(prediction.parent, reference.parent, tmp_path / "out")
    (row,) = evaluation.cases.to_dict("records")
    assert row["reference_volume_mm3"] == pytest.approx(6 * 6.5 * 16 * 0.5)
    assert row["volume_mm3"] == pytest.approx(6 * 6 * 16 * 0.5)
    assert "2 file(s): has sheared axes" in evaluation.warnings[-1]
    # one voxel further along the sheared axis is 2 mm up and 0.73 mm to the front
    points = np.argwhere(prism(6) > 0.5) @ SHEARED[:3, :3].T
    moved = np.roll(prism(6), 1, axis=2) > 0.5
    distances = case_measures(prism(6), moved.astype(np.float32), SHEARED[:3, :3])
    apart = np.linalg.norm(points[:, None] - (np.argwhere(moved) @ SHEARED[:3, :3].T)[None], axis=2)
    assert 0 < distances["hd95_mm"] <= apart.min(axis=1).max() + 1e-9


def test_a_file_that_cannot_be_used_stops_no_other_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = case_ids("12", ["T2w"])
    reference = references(tmp_path / "ref", cases)
    predictions = references(tmp_path / "pred", cases)
    (predictions / "sub-2_T2w_0001.nii.gz").write_bytes(b"no image")
    words = ["-i", str(predictions), "-g", str(reference), "-o", str(tmp_path / "out"), "-np", "1"]
    assert main(["evaluate", *words]) == 2
    assert "failed, in no mean: sub-2_T2w: pred/sub-2_T2w_0001.nii.gz: cannot be" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["num_cases"] == 1
    assert list(summary["failed"]) == ["sub-2_T2w"]
    assert pd.read_csv(tmp_path / "out" / "cases.csv")["case"].tolist() == ["sub-1_T2w"]
    words = ["--method", f"a={predictions}", "--method", f"b={reference}", *words[2:], "--no-report"]
    assert main(["compare", *words]) == 2
    assert "failed, in no mean: sub-2_T2w: " in capsys.readouterr().out


def test_heights_of_images_that_do_not_say_where_they_lie_are_not_compared(tmp_path: Path) -> None:
    cases = case_ids("1", ["T1w", "T2w"])
    lower = np.eye(4)
    lower[2, 3] = -5.0
    for folder in ("ref", "pred"):
        write(tmp_path / folder / f"{cases[0]}_0001.nii.gz", prism(6.5))
        write(tmp_path / folder / f"{cases[1]}_0001.nii.gz", prism(6.5), affine=lower)
    known = quiet(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert known.cases[["csa_region", "csa_slices"]].values.tolist() == [["common heights", 11]] * 2
    for folder in ("ref", "pred"):
        file = tmp_path / folder / f"{cases[1]}_0001.nii.gz"
        image = nib.load(file)
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        nib.save(image, file)
    unknown = quiet(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert unknown.cases[["csa_region", "csa_slices"]].values.tolist() == [["own slices", 16]] * 2
    assert "2 file(s): does not say where it lies (ref/sub-1_T2w_0001.nii.gz" in unknown.warnings[-1]

"""Contracts with nnU-Net: what our patches and overrides rely on. A failure here means it has changed."""

import functools
import inspect
import json
import multiprocessing
import os
import sys
import threading
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grid_plans import vanilla_plans
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.inference import export_prediction as nnunet_export
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module  # noqa: N813  a module, no class
from nnunetv2.utilities import file_path_utilities, find_class_by_name, utils
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_softseg import registry
from nnunet_softseg.errors import UserError
from nnunet_softseg.inference import nnunet_patches as upstream
from nnunet_softseg.inference.case_record import KEY, PredictionOptions
from nnunet_softseg.inference.export import made_by, report_case
from nnunet_softseg.io import workers
from nnunet_softseg.io.workers import threads_beside
from nnunet_softseg.preprocessing.model_plans import soft_plans
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings
from nnunet_softseg.training.trainer import nnUNetTrainerSoftSeg

stock = trainer_module.nnUNetTrainer


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_trainer_overrides_methods_that_exist_with_their_parameters() -> None:
    assert parameters(stock.__init__) == parameters(nnUNetTrainerSoftSeg.__init__)
    assert parameters(stock.build_network_architecture) == parameters(
        nnUNetTrainerSoftSeg.build_network_architecture
    )
    for name in (
        "on_train_start", "get_tr_and_val_datasets", "_build_loss", "configure_optimizers", "validation_step",
        "on_validation_epoch_end", "on_epoch_end", "save_checkpoint", "perform_actual_validation",
        "configure_rotation_dummyDA_mirroring_and_inital_patch_size",
    ):  # fmt: skip
        assert parameters(getattr(stock, name)) == parameters(getattr(nnUNetTrainerSoftSeg, name)), name
    assert parameters(stock.get_training_transforms)[:5] == [
        "patch_size", "rotation_for_DA", "deep_supervision_scales", "mirror_axes", "do_dummy_2d_data_aug",
    ]  # fmt: skip


def test_the_loader_asks_the_dataset_as_we_answer() -> None:
    source = inspect.getsource(nnUNetDataLoader.generate_train_batch)
    assert "self._data.load_case(i)" in source
    assert "properties['class_locations']" in source
    assert "self.transforms(**{'image': data_cropped, 'segmentation': seg_cropped})" in source
    assert "dtype=s.dtype" in source  # targets keep their type in the batch


def test_the_predictor_calls_what_is_patched_by_the_names_that_are_patched() -> None:
    source = inspect.getsource(predict_from_raw_data)
    assert "self.predict_sliding_window_return_logits(data)" in source
    assert source.count("export_prediction_from_logits(") >= 2
    assert "(prediction, properties, self.configuration_manager, self.plans_manager," in source
    assert "predictor.predict_sliding_window_return_logits(data)" in inspect.getsource(
        stock.perform_actual_validation
    )
    assert "export_prediction_from_logits, (" in inspect.getsource(stock.perform_actual_validation)
    assert parameters(nnunet_export.export_prediction_from_logits) == parameters(upstream.export_prediction)
    assert parameters(nnUNetPredictor._internal_get_sliding_window_slicers) == ["self", "image_size"]
    assert parameters(nnUNetPredictor._internal_maybe_mirror_and_predict) == ["self", "x"]


def test_the_label_manager_and_preprocessor_have_the_methods_that_we_override() -> None:
    overridden = (
        "apply_inference_nonlin",
        "convert_probabilities_to_segmentation",
        "convert_logits_to_segmentation",
        "revert_cropping_on_probabilities",
        "num_segmentation_heads",
    )
    for name in overridden:
        assert hasattr(LabelManager, name), name
    assert parameters(DefaultPreprocessor.run_case) == [
        "self", "image_files", "seg_file", "plans_manager", "configuration_manager", "dataset_json",
    ]  # fmt: skip
    assert parameters(DefaultPreprocessor.run_case_npy)[1:4] == ["data", "seg", "properties"]


def test_patches_stand_and_a_second_install_changes_nothing() -> None:
    before = nnUNetPredictor.predict_sliding_window_return_logits
    upstream.install()
    assert nnUNetPredictor.predict_sliding_window_return_logits is before
    assert predict_from_raw_data.export_prediction_from_logits is upstream.export_prediction
    assert trainer_module.export_prediction_from_logits is upstream.export_prediction
    assert (
        nnunet_export.export_prediction_from_logits is not upstream.export_prediction
    )  # the original stays reachable


def test_folds_are_opened_by_the_method_that_the_hook_wraps_with_the_arguments_that_are_read() -> None:
    opening = nnUNetPredictor.initialize_from_trained_model_folder
    assert parameters(opening.nnunet_softseg_original)[1:] == [
        "model_training_output_dir", "use_folds", "checkpoint_name",
    ]  # fmt: skip


@pytest.mark.parametrize("found", ["3d_lowres", "2d", None])
def test_the_second_stage_takes_predictions_of_the_first_alone(tmp_path: Path, found: str | None) -> None:
    """What a folder tells: None, as of an earlier version, is taken."""
    entry = {"trainer": "nnUNetTrainerSoftSeg"}
    predictor = SimpleNamespace(
        plans_manager=SimpleNamespace(plans={"nnunet_softseg": entry}),
        configuration_manager=SimpleNamespace(previous_stage_name="3d_lowres"),
    )
    told = entry if found is None else {**entry, "configuration": found}
    (tmp_path / "plans.json").write_text(json.dumps({"nnunet_softseg": told}))
    if found != "2d":
        upstream.require_previous_stage(predictor, str(tmp_path))
        return
    with pytest.raises(UserError, match="expected predictions of 3d_lowres, found those of 2d: predict with"):
        upstream.require_previous_stage(predictor, str(tmp_path))


class Doubling(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, 2 * x], 1)


@pytest.mark.parametrize("use_mirroring", [True, False])
def test_a_vanilla_model_is_blended_by_nnunet(use_mirroring: bool) -> None:
    """The original method and the patched one give the same bits for a model that is not ours."""
    predictor = nnUNetPredictor(use_mirroring=use_mirroring, device=torch.device("cpu"), allow_tqdm=False)
    predictor.plans_manager = SimpleNamespace(plans={"label_manager": "LabelManager"})
    predictor.configuration_manager = SimpleNamespace(patch_size=[8, 8, 8])
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=2)
    predictor.network, predictor.allowed_mirroring_axes = Doubling(), (0, 1, 2)
    image = torch.rand(1, 12, 9, 8)
    patched = predictor.predict_sliding_window_return_logits(image)
    original = nnUNetPredictor.predict_sliding_window_return_logits.__wrapped__(predictor, image)
    assert patched.dtype == torch.float16
    assert torch.equal(patched, original)


def test_the_case_under_way_is_the_one_that_the_iterator_gave_with_options_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NNUNET_SOFTSEG_LOCALIZE", "never")
    seen = []

    def original(self: Any, data_iterator: Any, *args: Any) -> list[int]:
        for item in data_iterator:
            upstream._under_way.get().seconds["forward"] = item["data"]
            seen.append(item["data_properties"])
        return [len(args)]

    soft = SimpleNamespace(
        plans_manager=SimpleNamespace(plans={"label_manager": "SoftLabelManager", "nnunet_softseg": {}})
    )
    items = [{"data": number, "data_properties": {"spacing": [1, 1, 1]}} for number in range(3)]
    assert upstream._for_soft_models(original, upstream._record_keeping_iterator)(
        soft, iter(items), True, 2
    ) == [2]
    assert upstream._under_way.get() is None  # nobody's any more

    def interrupted(self: Any, data_iterator: Any) -> None:
        next(iter(data_iterator))
        raise RuntimeError("out of memory")

    with pytest.raises(
        RuntimeError, match="out of memory"
    ) as kept:  # with its frames, as a notebook keeps it
        upstream._for_soft_models(interrupted, upstream._record_keeping_iterator)(soft, iter(items[:1]))
    assert kept.traceback
    assert upstream._under_way.get() is None
    assert [properties[KEY].seconds["forward"] for properties in seen] == [0, 1, 2]
    assert {properties[KEY].options for properties in seen} == {PredictionOptions(localize="never")}


# Threads in place of processes

SOFT = SimpleNamespace(plans=soft_plans(vanilla_plans(), "nnUNetTrainerSoftSeg", SoftSegSettings()))
VANILLA = SimpleNamespace(plans={"label_manager": "LabelManager"})


def test_the_predictor_starts_its_workers_where_threads_are_put_in_their_place() -> None:
    exporting = inspect.getsource(nnUNetPredictor.predict_from_data_iterator.__wrapped__)
    assert exporting.count("multiprocessing.") == 2
    assert 'multiprocessing.get_context("spawn").Pool(num_processes_segmentation_export)' in exporting
    assert "multiprocessing.TimeoutError" in exporting  # what a ThreadPool's result raises, too
    assert "for i in export_pool._pool" in exporting
    assert "i.is_alive()" in inspect.getsource(file_path_utilities.check_workers_alive_and_busy)
    stock_iterator = nnUNetPredictor._internal_get_data_iterator_from_lists_of_filenames
    assert parameters(stock_iterator.__wrapped__) == parameters(stock_iterator)
    for item in ("data", "ofile", "data_properties"):
        assert f"preprocessed['{item}']" in exporting
    listing = nnUNetPredictor._manage_input_and_output_lists
    assert parameters(listing.__wrapped__)[:2] == ["self", "list_of_lists_or_source_folder"]
    assert "create_lists_from_splitted_dataset_folder(list_of_lists_or_source_folder," in inspect.getsource(
        listing.__wrapped__
    )


def test_pools_are_of_threads_only_while_a_model_of_ours_predicts() -> None:
    seen: list[object] = []

    def original(self: Any, data_iterator: Any) -> None:
        context = predict_from_raw_data.multiprocessing.get_context("spawn")
        seen.append(context.Pool(2) if self.plans_manager is SOFT else type(context))

    patched = upstream._for_soft_models(original, upstream._record_keeping_iterator)
    for plans in (SOFT, VANILLA):
        patched(SimpleNamespace(plans_manager=plans), iter([]))
    pool, vanilla_context = seen
    spawn = multiprocessing.get_context("spawn")
    assert vanilla_context is type(spawn) is type(predict_from_raw_data.multiprocessing.get_context("spawn"))
    assert predict_from_raw_data.multiprocessing.TimeoutError is multiprocessing.TimeoutError
    with pool as threads:  # type: ignore[attr-defined]
        assert isinstance(threads, ThreadPool)
        assert len(threads._pool) == 2
        assert all(thread.is_alive() for thread in threads._pool)
        assert threads.apply_async(threading.get_ident).get() != threading.get_ident()


def test_pools_of_threads_end_with_the_prediction_even_if_it_fails() -> None:
    def original(self: Any, data_iterator: Any) -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        upstream._for_soft_models(original, upstream._record_keeping_iterator)(
            SimpleNamespace(plans_manager=SOFT), iter([])
        )
    after = predict_from_raw_data.multiprocessing.get_context("spawn")
    assert type(after) is type(multiprocessing.get_context("spawn"))


def test_a_vanilla_model_is_preprocessed_where_nnunet_does_it() -> None:
    calls = []
    patched = upstream._for_soft_models(lambda *args: calls.append(args), upstream._iterator_in_threads)
    vanilla = SimpleNamespace(plans_manager=VANILLA)
    patched(vanilla, [["a"]], [None], ["out/a"], 3)
    assert calls == [(vanilla, [["a"]], [None], ["out/a"], 3)]


def test_a_folder_is_listed_as_nnunet_lists_it(tmp_path: Path) -> None:
    names = (
        "b_0000.nii.gz",
        "a_0001.nii.gz",
        "a_0000.nii.gz",
        "a_b_0000.nii.gz",
        "a_0000.json",
    )
    for name in names:
        (tmp_path / name).touch()
    expected = utils.create_lists_from_splitted_dataset_folder(str(tmp_path), ".nii.gz", num_processes=1)
    assert upstream.images_of_folder(str(tmp_path), ".nii.gz") == expected
    assert [[Path(file).name for file in case] for case in expected if case] == [
        ["a_0000.nii.gz", "a_0001.nii.gz"], ["a_b_0000.nii.gz"], ["b_0000.nii.gz"],
    ]  # fmt: skip
    for plans in (VANILLA, SOFT):
        owner = SimpleNamespace(plans_manager=plans, dataset_json={"file_ending": ".nii.gz"})
        if plans is SOFT:  # nor does nnU-Net look whether all cases have the same channels
            (tmp_path / "a_0001.nii.gz").unlink()
            expected = [files[:1] for files in expected]
        listed = nnUNetPredictor._manage_input_and_output_lists(owner, str(tmp_path), "out")
        assert listed == (expected, ["out/a", "out/a_b", "out/b"], [None] * 3)
        as_given = nnUNetPredictor._manage_input_and_output_lists(owner, [["x_0000.nii.gz"]], None)
        assert as_given == ([["x_0000.nii.gz"]], None, [None])


def test_a_folder_in_which_a_case_lacks_a_channel_is_refused(tmp_path: Path) -> None:
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz"):
        (tmp_path / name).touch()
    owner = SimpleNamespace(plans_manager=SOFT, dataset_json={"file_ending": ".nii.gz"})
    with pytest.raises(UserError, match=r"expected 2 channels of each case, found b_0001.nii.gz alone"):
        nnUNetPredictor._manage_input_and_output_lists(owner, str(tmp_path), "out")


MISSING = {
    "nothing": (),
    "label map": ("a.nii.gz",),
    "soft map": ("soft/a_0001.nii.gz",),
    "probabilities": ("a.npz",),
}


OWNER = SimpleNamespace(
    plans_manager=SOFT,
    dataset_json={"file_ending": ".nii.gz"},
    label_manager=SimpleNamespace(scheme=SimpleNamespace(numbers=(1,), names=("cord",))),
)
"""A predictor, as far as the lists of its images ask."""
MADE_BY = made_by(SOFT.plans, ("cord",), PredictionOptions())


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("save_probabilities", [True, False])
def test_a_case_of_which_any_file_is_missing_is_predicted_again(
    tmp_path: Path, missing: str, save_probabilities: bool
) -> None:
    (tmp_path / "soft").mkdir()
    for case in ("a", "b"):
        for name in (f"{case}.nii.gz", f"{case}.npz", f"soft/{case}_0001.nii.gz"):
            (tmp_path / name).touch()
    for name in MISSING[missing]:
        (tmp_path / name).unlink()
    images = [["a_0000.nii.gz"], ["b_0000.nii.gz"]]
    lists = nnUNetPredictor._manage_input_and_output_lists(
        OWNER, images, str(tmp_path), overwrite=False, save_probabilities=save_probabilities
    )
    again = missing in ("label map", "soft map") or (missing == "probabilities" and save_probabilities)
    assert lists == (([images[0]], [str(tmp_path / "a")], [None]) if again else ([], [], []))
    everything = nnUNetPredictor._manage_input_and_output_lists(OWNER, images, str(tmp_path))
    assert everything[0] == images


@pytest.mark.parametrize("variable", ["LARGEST_PIECE", "DISCARD_IMPLAUSIBLE", "LOCALIZE"])
def test_cases_by_other_options_are_not_gone_on_with(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """softseg.json says by which they were predicted."""
    (tmp_path / "soft").mkdir()
    for name in ("a.nii.gz", "soft/a_0001.nii.gz"):
        (tmp_path / name).touch()
    go_on = functools.partial(
        nnUNetPredictor._manage_input_and_output_lists, OWNER, [["a_0000.nii.gz"]], str(tmp_path)
    )
    report_case(tmp_path / "a", MADE_BY, {})
    assert go_on(overwrite=False) == ([], [], [])
    monkeypatch.setenv(f"NNUNET_SOFTSEG_{variable}", "never" if variable == "LOCALIZE" else "1")
    told = f"softseg.json that differs in {variable.lower()}: set NNUNET_SOFTSEG_{variable} as before"
    with pytest.raises(UserError, match=told):
        go_on(overwrite=False)
    assert len(go_on(overwrite=True)[0]) == 1
    (tmp_path / "a.nii.gz").unlink()
    report_case(tmp_path / "a", MADE_BY, {})
    assert len(go_on(overwrite=False)[0]) == 1  # nothing to keep


@pytest.mark.parametrize(
    ("before", "differs"),
    [
        ({**MADE_BY, "training_cases": {"0": ["a"]}}, "training_cases"),  # of another fold
        ({**MADE_BY, "trainer": "nnUNetTrainerSoftSegDice"}, "trainer"),
        ({**MADE_BY, "trainer": "nnUNetTrainerSoftSegDice", "largest_piece": True}, "trainer, largest_piece"),
        ({}, ", ".join(MADE_BY)),  # does not tell
    ],
)
def test_cases_by_another_model_are_not_gone_on_with(
    before: dict[str, Any], differs: str, tmp_path: Path
) -> None:
    """Its maps would pass for those of this one, as one softseg.json speaks for a folder."""
    (tmp_path / "soft").mkdir()
    for name in ("a.nii.gz", "soft/a_0001.nii.gz"):
        (tmp_path / name).touch()
    images = [["a_0000.nii.gz"], ["b_0000.nii.gz"]]
    go_on = functools.partial(nnUNetPredictor._manage_input_and_output_lists, OWNER, images, str(tmp_path))
    (tmp_path / "softseg.json").write_text(json.dumps({**before, "cases": {"a": {}}}))
    with pytest.raises(
        UserError, match=f"softseg.json that differs in {differs}: give another folder, or leave"
    ):
        go_on(overwrite=False)
    assert (tmp_path / "a.nii.gz").exists()
    assert len(go_on(overwrite=True)[0]) == 2
    report_case(tmp_path / "a", MADE_BY, {})
    assert go_on(overwrite=False)[0] == images[1:]


def test_what_is_made_by_a_model_is_compared_as_json_has_it() -> None:
    """A tuple of settings, as Python's callers give them, is a list in softseg.json."""
    plans = {**SOFT.plans, PLANS_KEY: {**SOFT.plans[PLANS_KEY], "training_cases": {0: ("a",)}}}
    described = made_by(plans, ("cord",), PredictionOptions())
    assert described == json.loads(json.dumps(described))


def test_a_case_whose_image_is_newer_is_predicted_again(tmp_path: Path) -> None:
    """But not one whose time has not come: of a clock that is wrong, each call would begin anew."""
    (tmp_path / "soft").mkdir()
    images = [[str(tmp_path / f"{case}_0000.nii.gz")] for case in ("a", "b", "c")]
    for case in ("a", "b", "c"):
        for name in (f"{case}.nii.gz", f"soft/{case}_0001.nii.gz", f"{case}_0000.nii.gz"):
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (1e9, 1e9))
    os.utime(images[1][0], (1e9 + 1, 1e9 + 1))
    os.utime(images[2][0], (1e10, 1e10))
    lists = nnUNetPredictor._manage_input_and_output_lists(OWNER, images, str(tmp_path), overwrite=False)
    assert lists == ([images[1]], [str(tmp_path / "b")], [None])


def test_a_case_of_another_image_of_its_name_is_predicted_again(tmp_path: Path) -> None:
    """T2w_0000.nii.gz of another person: softseg.json says how large the image was that was predicted."""
    (tmp_path / "soft").mkdir()
    images = [[str(tmp_path / f"{case}_0000.nii.gz")] for case in ("a", "b", "c")]
    for (image,), content in zip(images, ("one", "two", "of another"), strict=True):
        Path(image).write_text(content)
        os.utime(image, (1e9, 1e9))
    for case in ("a", "b", "c"):
        for name in (f"{case}.nii.gz", f"soft/{case}_0001.nii.gz"):
            (tmp_path / name).touch()
    for case, entry in {"a": {"image_bytes": 3}, "b": {}, "c": {"image_bytes": 3}}.items():
        report_case(tmp_path / case, MADE_BY, entry)
    lists = nnUNetPredictor._manage_input_and_output_lists(OWNER, images, str(tmp_path), overwrite=False)
    assert lists == ([images[2]], [str(tmp_path / "c")], [None])


def test_threads_share_sums_as_the_forward_pass_does() -> None:
    """A sum depends on the number of threads in its last bits; nnU-Net's forward pass takes at most eight."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with threads_beside(2, upstream.same_arithmetic()) as pool:
            torch.set_num_threads(3)  # what a thread started now would get
            assert pool.apply(torch.get_num_threads) == 1
    finally:
        torch.set_num_threads(before)


@given(st.lists(st.integers(), max_size=8), st.integers(0, 10))
def test_threads_ahead_give_the_results_in_the_order_of_the_jobs(jobs: list[int], num_threads: int) -> None:
    futures = workers.map_ahead(lambda number: number**2, jobs, num_threads=num_threads)
    assert [future.result() for future in futures] == [number**2 for number in jobs]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_ahead_start_no_more_jobs_than_may_wait(num_threads: int) -> None:
    """However slow the caller is, memory holds its own result and `num_threads` others."""
    started: list[int] = []
    for done, future in enumerate(workers.map_ahead(started.append, range(10), num_threads=num_threads)):
        future.result()
        time.sleep(0.02)
        assert len(started) <= done + 1 + num_threads
    assert started == list(range(10))


def test_threads_ahead_hand_on_what_a_job_raises_and_go_on() -> None:
    futures = list(workers.map_ahead([0, 1].index, range(4), num_threads=2))
    assert [str(future.exception()) for future in futures] == [
        "None",
        "None",
        "2 is not in list",
        "3 is not in list",
    ]


def test_threads_ahead_stop_when_the_caller_does() -> None:
    started: list[int] = []
    futures = workers.map_ahead(started.append, range(50), num_threads=1)
    next(futures).result()
    futures.close()  # type: ignore[attr-defined]
    time.sleep(0.05)
    assert len(started) <= 2


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is that of the whole process here")
def test_threads_that_read_and_write_give_way_to_the_network() -> None:
    before = niceness()
    (ahead,) = workers.map_ahead(lambda _: niceness(), [0], num_threads=1)
    with threads_beside(1, upstream.same_arithmetic()) as pool:
        beside = pool.apply(niceness)
    assert ahead.result() > before
    assert beside > before
    assert niceness() == before


# The search for a class by its name, beside other threads


def test_the_search_for_a_class_extends_the_import_path_by_the_name_that_is_patched() -> None:
    upstream.install()
    source = inspect.getsource(find_class_by_name.recursive_find_python_class)
    assert "stack.enter_context(temporarily_extend_syspath(base_folder))" in source
    assert find_class_by_name.temporarily_extend_syspath is registry.extended_import_path


@pytest.mark.parametrize("starts", ["before", "within"])
def test_who_reads_the_import_path_during_a_search_misses_nothing(tmp_path: Path, starts: str) -> None:
    entries = list(sys.path)
    reader = iter(sys.path)
    with find_class_by_name.temporarily_extend_syspath(str(tmp_path)):
        assert sys.path == [str(tmp_path), *entries]
        if starts == "within":
            reader = iter(sys.path)
        read = [next(reader), next(reader)]
    assert set(entries) <= {*read, *reader}
    assert sys.path == entries


def test_a_search_leaves_an_entry_of_the_import_path_that_was_there_and_cleans_up_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    entries = list(sys.path)
    with find_class_by_name.temporarily_extend_syspath(str(tmp_path)):
        assert sys.path == entries
    assert sys.path == entries
    with pytest.raises(ImportError), find_class_by_name.temporarily_extend_syspath(str(tmp_path / "other")):
        raise ImportError
    assert sys.path == entries

"""Soft measures of an epoch, from its batches to progress.png."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import LocalLogger, MetaLogger
from PIL import Image

from nnunet_softseg.metrics import overlap as metrics
from nnunet_softseg.training.training_log import SoftSegLogger, online_measures, print_progress, progress_line


def test_sums_of_batches_give_the_measures_of_all_voxels() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand(2, 2, 4, 4, 4, generator=generator), torch.rand(2, 2, 4, 4, 4, generator=generator))
        for _ in range(3)
    ]
    sums = [online_measures(soft, target) for soft, target in batches]
    total = {name: np.sum([batch[name] for batch in sums], 0) for name in sums[0]}
    logger = SoftSegLogger()
    logger.log_soft_measures(total, 0)
    for label in range(2):
        prediction = np.concatenate([soft[:, label].numpy().ravel() for soft, _ in batches])
        reference = np.concatenate([target[:, label].numpy().ravel() for _, target in batches])
        found = {name: logger.my_fantastic_logging[name][0][label] for name in SoftSegLogger.MEASURES}
        assert found["soft_dice"] == pytest.approx(metrics.soft_dice(prediction, reference), rel=1e-5)
        band = metrics.boundary(reference)
        assert found["boundary_mae"] == pytest.approx(
            metrics.mean_absolute_error(prediction, reference, band), rel=1e-5
        )
        assert found["volume_error_percent"] == pytest.approx(
            metrics.relative_volume_error(prediction, reference), rel=1e-4
        )
        tp, fp, fn = (total[name][label] for name in ("tp_hard", "fp_hard", "fn_hard"))
        assert 2 * tp / (2 * tp + fp + fn) == pytest.approx(metrics.dice(prediction, reference))


@pytest.mark.parametrize(
    ("seconds", "total", "expected"),
    [
        ([10.0, 2.0, 3.0, 3.0], 10, "epoch 4/10, about 18 s to go"),
        ([61.0] * 3, 10, "epoch 3/10, about 7 min to go"),
        ([1000.0] + [90.0] * 10, 200, "epoch 11/200, about 5 h to go"),
        ([600.0], 1000, "epoch 1/1000, about 7 days to go"),
        ([5.0] * 2, 2, "epoch 2/2, about 0 s to go"),
    ],
)
def test_the_time_to_go_is_that_of_the_last_epochs(seconds: list[float], total: int, expected: str) -> None:
    ends = np.cumsum(seconds)
    assert progress_line([*(ends - seconds)], [*ends], total) == expected


def test_the_progress_is_read_from_nnunets_log(tmp_path: Path) -> None:
    logger, printed = MetaLogger(str(tmp_path), False), []
    logger.local_logger = filled(2)
    print_progress(SimpleNamespace(logger=logger, num_epochs=4, print_to_log_file=printed.append))
    assert printed == ["epoch 2/4, about 6 s to go"]


def test_an_epoch_without_a_dice_leaves_the_moving_average_as_it_is(tmp_path: Path) -> None:
    """Where nothing is above a half, as at first of labels that few raters marked, it is NaN."""
    logger, nan = MetaLogger(str(tmp_path), False), float("nan")
    logger.local_logger = SoftSegLogger()
    for epoch, dice in enumerate([nan, 0.4, nan, 0.6]):
        logger.log("mean_fg_dice", dice, epoch)
    averages = logger.get_value("ema_fg_dice", step=None)
    assert np.isnan(averages[0])
    assert averages[1:] == pytest.approx([0.4, 0.4, 0.9 * 0.4 + 0.1 * 0.6])


def filled(epochs: int) -> SoftSegLogger:
    logger = SoftSegLogger()
    for epoch in range(epochs):
        for name in (
            "mean_fg_dice",
            "ema_fg_dice",
            "train_losses",
            "val_losses",
            "lrs",
            "epoch_start_timestamps",
        ):
            logger.log(name, 0.1 * epoch, epoch)
        logger.log("epoch_end_timestamps", 0.1 * epoch + 3, epoch)
        logger.log("dice_per_class_or_region", [0.5], epoch)
        for name in SoftSegLogger.MEASURES:
            logger.log(name, [0.2 * epoch], epoch)
    return logger


def test_progress_png_gains_panels_below_nnunets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plot = LocalLogger.plot_progress_png

    def plot_and_keep(self: LocalLogger, output_folder: str) -> None:
        plot(self, output_folder)
        shutil.copy(tmp_path / "progress.png", tmp_path / "stock.png")

    monkeypatch.setattr(LocalLogger, "plot_progress_png", plot_and_keep)
    filled(4).plot_progress_png(str(tmp_path))
    stock = Image.open(tmp_path / "stock.png").convert("RGB")
    drawn = Image.open(tmp_path / "progress.png")
    assert drawn.width == stock.width
    assert drawn.height > stock.height + 1000
    top = np.asarray(drawn)[: stock.height].astype(int)
    assert np.abs(top - np.asarray(stock)).max() == 0
    below = np.asarray(drawn)[stock.height :: 5, ::5]
    assert len(np.unique(below.reshape(-1, 3), axis=0)) > 20  # curves and text, not an empty panel


def test_a_log_without_soft_measures_is_taken_over_with_gaps() -> None:
    vanilla = LocalLogger()
    for epoch in range(3):
        vanilla.log("val_losses", 1.0, epoch)
    logger = SoftSegLogger()
    logger.load_checkpoint(vanilla.get_checkpoint())
    logger.log("soft_dice", [0.9], 3)
    assert len(logger.my_fantastic_logging["soft_dice"]) == 4

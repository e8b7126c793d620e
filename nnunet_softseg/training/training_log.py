"""Soft measures of each epoch, in nnU-Net's log and progress.png; time to go."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
import torch
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from PIL import Image

from nnunet_softseg.settings import HARD_THRESHOLD

COARSE_SCALES = "coarse_scales"
"""Of the loss, one list per coarse level with a value per label, at the end of each epoch."""
_RECENT_EPOCHS = 10
_UNITS = ((86400, "days"), (3600, "h"), (60, "min"))


@torch.no_grad()
def online_measures(soft_map: torch.Tensor, target: torch.Tensor) -> dict[str, Any]:
    """Return the sums over a batch from which Dice, soft Dice and errors of an epoch are made, per label.

    Soft map and target are (batch, label, *space) in [0, 1].
    """
    axes = (0, *range(2, target.ndim))
    target = target.float()
    predicted, expected = soft_map > HARD_THRESHOLD, target > HARD_THRESHOLD
    boundary = (target > 0) & (target < 1)
    error = (soft_map - target).abs()
    sums = {
        "tp_hard": (predicted & expected).sum(axes),
        "fp_hard": (predicted & ~expected).sum(axes),
        "fn_hard": (~predicted & expected).sum(axes),
        "overlap_sum": torch.minimum(soft_map, target).sum(axes),
        "prediction_sum": soft_map.sum(axes),
        "target_sum": target.sum(axes),
        "boundary_error_sum": (error * boundary).sum(axes),
        "boundary_count": boundary.sum(axes),
    }
    return {name: value.double().cpu().numpy() for name, value in sums.items()}


def print_progress(trainer: Any) -> None:
    """Print "epoch 3/10, about 4 min to go" at the end of an epoch of any trainer of nnU-Net's."""
    starts, ends = (
        trainer.logger.get_value(f"epoch_{end}_timestamps", step=None) for end in ("start", "end")
    )
    trainer.print_to_log_file(progress_line(starts, ends, trainer.num_epochs))


def progress_line(starts: Sequence[float], ends: Sequence[float], total: int) -> str:
    """Return how far a training is, and how long it takes by the median of its last epochs.

    Start and end of each epoch that is done are in s. The final validation is not counted.
    """
    taken = [end - start for start, end in zip(starts, ends, strict=False)]
    seconds = float(np.median(taken[-_RECENT_EPOCHS:])) * (total - len(taken))
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= 2 * size), (1, "s"))
    return f"epoch {len(taken)}/{total}, about {seconds / size:.0f} {unit} to go"


class SoftSegLogger(LocalLogger):  # type: ignore[misc]
    """nnU-Net's log with three soft measures per epoch and label, drawn below its own curves."""

    SUMS = ("overlap_sum", "prediction_sum", "target_sum", "boundary_error_sum", "boundary_count")
    MEASURES: ClassVar[dict[str, str]] = {
        "soft_dice": "Soft Dice",
        "boundary_mae": "Boundary MAE",
        "volume_error_percent": "Soft volume error [%]",
    }

    def __init__(self, verbose: bool = False) -> None:
        super().__init__(verbose)
        for name in (*self.MEASURES, COARSE_SCALES):
            self.my_fantastic_logging[name] = []

    def log(self, key: str, value: Any, epoch: int) -> None:
        """Log a value; the moving average of the Dice goes on over epochs of which there is none.

        Where no voxel of labels and maps is above a half, the Dice is NaN, and one would make all averages
        after it NaN.
        """
        if key == "ema_fg_dice" and np.isnan(value):
            before = self.my_fantastic_logging[key][:epoch]
            of_epoch = self.my_fantastic_logging["mean_fg_dice"][epoch]
            value = before[-1] if before and not np.isnan(before[-1]) else of_epoch
        super().log(key, value, epoch)

    def log_soft_measures(self, sums: dict[str, Any], epoch: int) -> None:
        """Turn the sums of an epoch into its measures, one value per label, NaN where a label is absent."""
        with np.errstate(invalid="ignore", divide="ignore"):
            measures = {
                "soft_dice": 2 * sums["overlap_sum"] / (sums["prediction_sum"] + sums["target_sum"]),
                "boundary_mae": sums["boundary_error_sum"] / sums["boundary_count"],
                "volume_error_percent": 100 * (sums["prediction_sum"] / sums["target_sum"] - 1),
            }
        for name, values in measures.items():
            self.log(name, [float(value) for value in values], epoch)

    def latest_soft_measures(self) -> dict[str, list[float]]:
        """Return the measures of the last epoch under the names that people read."""
        return {title: self.my_fantastic_logging[name][-1] for name, title in self.MEASURES.items()}

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over a checkpoint's log; one without soft measures (a fine-tuned vanilla run) gets gaps."""
        super().load_checkpoint(checkpoint)
        epochs = len(checkpoint["val_losses"])
        for name in self.MEASURES:
            checkpoint.setdefault(name, [[float("nan")]] * epochs)
        checkpoint.setdefault(COARSE_SCALES, [None] * epochs)

    def plot_progress_png(self, output_folder: str) -> None:
        """Draw nnU-Net's progress.png with the soft measures below."""
        super().plot_progress_png(output_folder)
        path = Path(output_folder) / "progress.png"
        nnunet_panels = Image.open(path).convert("RGB")
        soft_panels = self._soft_panels(width=nnunet_panels.width)
        joined = Image.new("RGB", (nnunet_panels.width, nnunet_panels.height + soft_panels.height), "white")
        joined.paste(nnunet_panels, (0, 0))
        joined.paste(soft_panels, (0, nnunet_panels.height))
        joined.save(path)

    def _soft_panels(self, width: int) -> Image.Image:
        dpi = 100
        figure, axes = plt.subplots(len(self.MEASURES), 1, figsize=(width / dpi, 36), dpi=dpi, sharex=True)
        for axis, (name, title) in zip(axes, self.MEASURES.items(), strict=True):
            values = np.array(self.my_fantastic_logging[name], dtype=float)
            for label, curve in enumerate(values.T, start=1):
                axis.plot(curve, linewidth=4, marker="o", label=f"label {label}")
            axis.set_ylabel(title)
        axes[0].set_ylim(0, 1)
        axes[-1].axhline(0, color="grey", linewidth=2)
        axes[-1].set_xlabel("epoch")
        axes[0].legend(loc="lower right")
        figure.tight_layout()
        figure.canvas.draw()
        picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())  # type: ignore[attr-defined]
        plt.close(figure)
        return picture

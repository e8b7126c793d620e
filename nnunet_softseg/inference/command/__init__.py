"""Images -> soft maps in one process, for people without nnU-Net's folders.

The way of the data: images (which files make which case), model (a folder or archive, checked, loaded) ->
output_folder (what is there already, what made it) -> command (read, predict and write, case by case).
"""

from nnunet_softseg.inference.command.command import PredictionReport, predict

__all__ = ["PredictionReport", "predict"]

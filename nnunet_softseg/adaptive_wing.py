"""The loss by the path that scripts of users have; its home is `network/soft_loss.py`."""

from nnunet_softseg.network.soft_loss import AdaptiveWingLoss

__all__ = ["AdaptiveWingLoss"]

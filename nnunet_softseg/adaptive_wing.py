"""The loss by the path that scripts of users have; its home is `network/adaptive_wing.py`."""

from nnunet_softseg.network.adaptive_wing import AdaptiveWingLoss

__all__ = ["AdaptiveWingLoss"]

"""Training images of random contrast from label maps, with exact soft labels: `synthesise`."""

from nnunet_softseg.phantom.synthesis.synthesise import synthesise

__all__ = ["synthesise"]

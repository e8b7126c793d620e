"""Augmentation of a patch between the loader and the network, with a label that stays soft."""

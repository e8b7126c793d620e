"""Plausibility of an alignment: shift, jump between slices, agreement with the average."""

from collections.abc import Mapping

import numpy as np

from nnunet_softseg.labels.contrasts.alignment import Floats, Motion, measure, reference_of
from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings
from nnunet_softseg.labels.contrasts.volume import Volume

_ENOUGH_TO_BLAME = 2
"""So many contrasts must be implausible against the reference before it is the reference's fault."""


def warnings_of(motion: Motion, agreement: float, settings: GroundTruthSettings) -> tuple[str, ...]:
    """Return why an alignment is implausible, with numbers; empty if it is not.

    Args:
        motion: between the reference and the contrast.
        agreement: Dice of the contrast's mask and its soft label, both > 0.5.
        settings: the limits.
    """
    warnings = _shift_warnings(motion, settings)
    if agreement < settings.min_agreement:
        limit = settings.min_agreement
        warnings += (f"agreement with the average (Dice) is {agreement:.2f}, less than {limit:g}",)
    return warnings


def _shift_warnings(motion: Motion, settings: GroundTruthSettings) -> tuple[str, ...]:
    height = motion.cord.at(motion.measured.astype(np.float64))[2]
    warnings = (_too_far(motion.steps, height, settings), _too_sudden(motion.steps, height, settings))
    return tuple(warning for warning in warnings if warning)


def _too_far(steps: Floats, height: Floats, settings: GroundTruthSettings) -> str | None:
    length = np.linalg.norm(steps, axis=1)
    place = int(length.argmax())
    if length[place] <= settings.max_shift_mm:
        return None
    return (
        f"shift of {length[place]:.1f} mm at z = {height[place]:.0f} mm, "
        f"more than {settings.max_shift_mm:g} mm"
    )


def _too_sudden(steps: Floats, height: Floats, settings: GroundTruthSettings) -> str | None:
    jumps = np.linalg.norm(np.diff(steps, axis=0), axis=1)
    if not jumps.size or jumps.max() <= settings.max_jump_mm:
        return None
    place = int(jumps.argmax())
    return (
        f"shift changes by {jumps[place]:.1f} mm between slices at z = {height[place]:.0f} and "
        f"{height[place + 1]:.0f} mm, more than {settings.max_jump_mm:g} mm"
    )


def warning_about_reference(
    masks: Mapping[str, Volume], reference: str, settings: GroundTruthSettings
) -> str | None:
    """Return why the reference itself is implausible, and not the contrasts aligned to it; None if it is not.

    It is if two contrasts or more lie implausibly against it, and fewer against another reference.

    Args:
        masks: upright.
        reference: its contrast.
        settings: the limits.
    """
    against = _implausible_against(masks, reference, settings)
    if against < _ENOUGH_TO_BLAME:
        return None
    others = {name: _implausible_against(masks, name, settings) for name in sorted(set(masks) - {reference})}
    best = min(others, key=lambda name: others[name])
    if others[best] >= against:
        return None
    return f"{against} of {len(others)} contrasts lie implausibly against it, against {best} {others[best]}"


def _implausible_against(masks: Mapping[str, Volume], reference: str, settings: GroundTruthSettings) -> int:
    base = reference_of(masks[reference])
    motions = [measure(base, mask, settings) for name, mask in masks.items() if name != reference]
    return sum(bool(_shift_warnings(motion, settings)) for motion in motions if motion is not None)

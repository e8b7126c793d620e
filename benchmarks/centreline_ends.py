"""Error of the area in the first and last slices, where the centreline has neighbours on one side only.

    python benchmarks/centreline_ends.py

Curved centrelines of the phantom, scaled to a largest tilt, in pieces of some length with slices of 1 mm. The
area is the one in the slice times the cosine of the tilt: an error of the tilt is one of the area.
"""

from dataclasses import replace

import numpy as np

from nnunet_softseg.metrics.morphometry.centreline import fit_centreline
from nnunet_softseg.phantom import PhantomSpec
from nnunet_softseg.phantom.acquisition import draw_subject_anatomy

CORDS = 100
_INNER = 10


def main() -> None:
    """Print mean, 95th percentile and largest error of the ends, and the largest 10 mm from them."""
    random = np.random.default_rng(0)
    for largest_deg in (10, 15, 20):
        for length_mm in (40, 80, 200):
            cords = [errors_percent(seed, largest_deg, length_mm, random) for seed in range(CORDS)]
            ends = np.abs([(error[0], error[-1]) for error in cords])
            inner = np.abs([error[_INNER:-_INNER] for error in cords]).max()
            figures = (
                f"{ends.mean():.1f}, {np.percentile(ends, 95):.1f}, {ends.max():.1f}; inner {inner:.1f} %"
            )
            print(f"{largest_deg} degrees, {length_mm} mm: {figures}")


def errors_percent(
    seed: int, largest_deg: float, length_mm: float, random: np.random.Generator
) -> np.ndarray:
    """Return the error of the area in each slice of a piece of cord."""
    anatomy = draw_subject_anatomy(PhantomSpec(seed=seed), 1)
    z = np.arange(length_mm) + anatomy.centre_mm[2] - length_mm / 2 + random.uniform(-60, 40)
    scale = np.tan(np.radians(largest_deg)) / np.tan(np.radians(anatomy.tilt_deg(z).max()))
    waves = {
        name: tuple(replace(wave, amplitude_mm=scale * wave.amplitude_mm) for wave in getattr(anatomy, name))
        for name in ("waves_rl", "waves_ap")
    }
    slope = (scale * anatomy.slope[0], scale * anatomy.slope[1])
    centres, true, _ = replace(anatomy, slope=slope, **waves).centreline(z)
    line = fit_centreline(np.column_stack([centres.T, z]), np.ones(z.size), 1.0)
    found = line.slopes(z)
    return 100 * (np.sqrt((1 + (true**2).sum(axis=0)) / (1 + (found**2).sum(axis=1))) - 1)


if __name__ == "__main__":
    main()

"""How often intervals hold the true mean, and how often two equal methods are said to differ.

    python benchmarks/chance.py

Coverage: draws of a normal and of a skewed (exponential) distribution, Student's t, bootstrap (BCa), and what
`compare` takes. Verdicts: two methods with one distribution of errors. Maps of discs, in two contrasts of
every subject, are measured once; a page takes some of the subjects, and for each at random which of its two
maps is whose. Counted are pages with at least one difference (p < 0.05 and an interval without 0): among all
measures or the headlines each by itself, and, as `compare` does, among the headlines corrected together.
"""

import argparse
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from nnunet_softseg.evaluation.comparison import paired_statistics
from nnunet_softseg.evaluation.comparison.leaderboard import HEADLINES, SCORES, subject_table
from nnunet_softseg.evaluation.comparison.paired_statistics import (
    SIGNIFICANT,
    bca,
    confidence_interval,
    corrected,
    signed_rank_test,
    student_t,
)
from nnunet_softseg.metrics.overlap import case_measures

Floats = npt.NDArray[np.float64]

CONTRASTS = ("T1w", "T2w")
SHAPE = (24, 24, 6)
_RESAMPLES = 1999  # enough for a coverage, and five times as fast


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=1000, help="samples per distribution and size")
    parser.add_argument("--pages", type=int, default=4000, help="comparisons per number of subjects")
    parser.add_argument("--sizes", type=int, nargs="+", default=[6, 12, 18, 30, 60])
    asked = parser.parse_args()
    paired_statistics.RESAMPLES = _RESAMPLES
    random = np.random.default_rng(0)
    for name, draw in {"normal": random.normal, "exponential": random.exponential}.items():
        print(coverage(name, [draw(1.0, size=(asked.draws, size)) for size in asked.sizes]), flush=True)
    subjects = subject_table(measured_subjects(300, random))[0].set_index(["method", "subject"])
    measured = subjects[[name for name in SCORES if name not in {"seconds", "pq", "rq", "sq"}]]  # one object
    differences = measured.loc["a"] - measured.loc["b"]
    for size in asked.sizes[:3]:
        print(false_verdicts(differences, size, asked.pages, random), flush=True)


def coverage(name: str, samples: Iterable[Floats]) -> str:
    """Return the share of intervals that hold the true mean of 1, a line per size of sample."""
    methods = {"t": student_t, "BCa": lambda values: bca(values, 0), "compare": confidence_interval}
    lines = []
    for drawn in samples:
        held = {
            method: np.mean([low <= 1 <= high for low, high in map(interval, drawn)])
            for method, interval in methods.items()
        }
        shares = ", ".join(f"{method} {share:.1%}" for method, share in held.items())
        lines.append(f"{name}, n = {drawn.shape[1]}: {shares}")
    return "\n".join(lines)


def false_verdicts(differences: pd.DataFrame, size: int, pages: int, random: np.random.Generator) -> str:
    """Return the share of pages on which anything differs, by three rules.

    `differences` of two equal methods, a row per subject, a column per measure.
    """
    found = np.zeros((pages, 3), dtype=bool)
    headlines = [differences.columns.get_loc(name) for name in HEADLINES]
    for page in found:
        rows = random.choice(len(differences), size, replace=False)
        values = differences.to_numpy()[rows] * random.choice([-1, 1], (size, 1))
        p = np.array([signed_rank_test(measure).p for measure in values.T])
        apart = np.array([low > 0 or high < 0 for low, high in map(confidence_interval, values.T)])
        alone = (p < SIGNIFICANT) & apart
        holds = (corrected(p[headlines]) < SIGNIFICANT) & apart[headlines]
        page[:] = alone.any(), alone[headlines].any(), holds.any()
    names = (f"any of {differences.shape[1]} measures", "any headline", "a difference holds")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in zip(names, found.mean(axis=0), strict=True))
    return f"equal methods, {size} subjects, {pages} pages: {shares}"


def measured_subjects(count: int, random: np.random.Generator) -> pd.DataFrame:
    """Return the cases of so many subjects, measured for methods a and b of equal quality."""
    rows = []
    for number in range(count):
        subject, radius = f"sub-{number:03d}", random.normal(5, 0.5)
        hard_to_see = abs(random.normal(0, 0.3))
        for contrast in CONTRASTS:
            reference = disc(radius, np.zeros(2))
            for method in "ab":
                error = random.normal(0.1, 0.2 + hard_to_see)
                prediction = disc(radius + error, random.normal(0, 0.3 + hard_to_see, 2))
                false = random.random(SHAPE) < random.exponential(0.001)
                prediction = np.clip(
                    prediction + random.normal(0, 0.05, SHAPE) * (prediction > 0) + false, 0, 1
                )
                who = {"method": method, "subject": subject, "session": "", "contrast": contrast, "label": 1}
                rows.append(who | {"case": f"{subject}_{contrast}"} | measures(prediction, reference))
    return pd.DataFrame(rows)


def disc(radius: float, centre: Floats) -> Floats:
    """Return a disc with a soft edge of one voxel in every slice."""
    x, y = (np.arange(size) - (size - 1) / 2 - shift for size, shift in zip(SHAPE, centre, strict=False))
    profile = np.clip(radius + 0.5 - np.hypot(x[:, None], y), 0, 1)
    return np.repeat(profile[..., None], SHAPE[2], axis=2)


def measures(prediction: Floats, reference: Floats) -> Mapping[str, float]:
    """Return what `compare` ranks by, with the areas of upright discs in voxels of 1 mm."""
    found = case_measures(prediction, reference, (1.0, 1.0, 1.0))
    found |= {f"abs_{name}": abs(found[name]) for name in ("rve_percent", "hard_rve_percent")}
    for stem, maps in (("csa", (prediction, reference)), ("csa_hard", (prediction > 0.5, reference > 0.5))):  # noqa: PLR2004
        area, expected = (float(values.sum()) / SHAPE[2] for values in maps)
        error = abs(area - expected)
        found |= {f"{stem}_mm2": area, f"reference_{stem}_mm2": expected, f"abs_{stem}_error_mm2": error}
        found[f"abs_{stem}_error_percent"] = 100 * error / expected
    return found | {"seconds": np.nan}


if __name__ == "__main__":
    main()

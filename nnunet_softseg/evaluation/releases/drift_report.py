"""The verdict about two releases: statistics held against limits."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_softseg.errors import examples
from nnunet_softseg.evaluation.releases.areas import ReleaseAreas, names_of
from nnunet_softseg.evaluation.releases.limits import Limits
from nnunet_softseg.evaluation.releases.statistics import (
    DRIFT_COLUMNS,
    few_subjects,
    over_contrasts,
    spread_over_contrasts,
    statistics_table,
    worst_cases,
)
from nnunet_softseg.evaluation.tables import records


@dataclass(frozen=True)
class DriftReport:
    """Two releases compared on one set of people.

    Attributes:
        old: the old release, folder of maps or CSV.
        new: the new one.
        areas: what was compared.
        limits: what counts as drift.
        limits_file: where they come from; None: the defaults.
        trained_on: release -> subjects that it was trained on.
        manifest_files: files of the frozen set that were verified; None: no manifest was given.
        notes: warnings beside those of the areas.
    """

    old: Path
    new: Path
    areas: ReleaseAreas
    limits: Limits
    limits_file: Path | None = None
    trained_on: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    manifest_files: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def pairs(self) -> pd.DataFrame:
        """The areas of both releases; see `ReleaseAreas`."""
        return self.areas.pairs

    @property
    def lost(self) -> pd.DataFrame:
        """The areas that the new release does not find."""
        return self.areas.lost

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row per contrast and level: `DRIFT_COLUMNS` and more, the limit of the bias, and those broken."""
        several = self.pairs["contrast"].nunique() > 1
        return self._judged(statistics_table(self.pairs), one_of_several=several)

    @cached_property
    def pooled(self) -> pd.DataFrame:
        """The same of all contrasts together, a row per level; none where there is one contrast."""
        return self._judged(over_contrasts(self.pairs))

    @cached_property
    def spread(self) -> pd.DataFrame:
        """STD of a subject's area over contrasts, a row per level, and `beyond`."""
        return self._judged(spread_over_contrasts(self.pairs))

    @cached_property
    def worst(self) -> pd.DataFrame:
        """The areas that changed most."""
        return worst_cases(self.pairs)

    @property
    def judged(self) -> pd.DataFrame:
        """All rows of the statistics, those of all contrasts together last."""
        return pd.concat([self.table, self.pooled], ignore_index=True) if len(self.pooled) else self.table

    def _judged(self, table: pd.DataFrame, *, one_of_several: bool = False) -> pd.DataFrame:
        rows = table.to_dict("records")
        _, limit = self.limits.of_bias(one_of_several=one_of_several)
        return table.assign(
            beyond=[self.limits.broken(row, one_of_several=one_of_several) for row in rows],
            limit_percent=np.nan if limit is None else limit,
        )

    @property
    def broken(self) -> list[str]:
        """Which limits are broken where, in words."""
        found = [
            f"{name} of {place or 'all'}"
            for table in (self.judged, self.spread)
            for names, place in zip(table["beyond"], _places(table), strict=True)
            for name in names
        ]
        allowed = self.limits.lost_areas
        if allowed is not None and len(self.lost) > allowed:
            found.append(f"{len(self.lost)} areas lost ({examples(names_of(self.lost))})")
        return found

    @property
    def drift(self) -> bool:
        """Whether any limit is broken."""
        return bool(self.broken)

    @property
    def verdict(self) -> str:
        """The limits that are broken, or that none is, in words."""
        if not self.drift:
            return f"no limit is broken in {len(self.judged)} rows of contrast and level"
        return f"beyond the limit: {examples(self.broken, 6)}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may make the verdict worth less, the gravest first."""
        seen = [
            f"{release} WAS TRAINED ON {len(people)} of these subjects: {examples(people)}; its areas of "
            "them say little about new people: freeze a set that no release has seen"
            for release, people in self.trained_on.items()
        ]
        return (*seen, *self.notes, *few_subjects(self.table), *self.areas.warnings)

    def as_text(self) -> str:
        """Return statistics and verdict for a terminal."""
        shown = self.judged[[*DRIFT_COLUMNS]].to_string(
            index=False, float_format=lambda value: f"{value:.4g}", na_rep=""
        )
        return f"{shown}\n\n{'DRIFT' if self.drift else 'no drift'}: {self.verdict}"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        tables = {"rows": self.table, "over_contrasts": self.pooled, "std_over_contrasts": self.spread}
        return {
            "drift": self.drift,
            "beyond_limits": self.broken,
            "limits": dataclasses.asdict(self.limits),
            "limits_note": "no published limit exists; broken where the whole 95 % interval lies beyond it",
            "num_subjects": int(self.pairs["subject"].nunique()),
            "num_areas": len(self.pairs),
            "columns": dict(DRIFT_COLUMNS),
            **{name: records(table) for name, table in tables.items()},
            "worst": records(self.worst),
            "lost": records(self.lost),
            "trained_on": dict(self.trained_on),
            "manifest_files": self.manifest_files,
            "warnings": list(self.warnings),
        }


def _places(table: pd.DataFrame) -> list[str]:
    contrasts = table["contrast"] if "contrast" in table else [""] * len(table)
    rows = table[["level"]].fillna(0).astype(int).assign(subject="", session="", contrast=contrasts)
    return names_of(rows)

"""Settings that are refused, and volumes that are turned upright and back."""

import dataclasses
import json
from itertools import permutations, product

import numpy as np
import pytest

from nnunet_softseg.errors import UserError
from nnunet_softseg.labels.contrasts.settings import GroundTruthSettings
from nnunet_softseg.labels.contrasts.volume import Volume, as_stored, cropped, upright

ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"trim_mm": -1.0}, "trim_mm must lie between 0 and 200, got -1"),
        ({"smooth_mm": float("nan")}, "smooth_mm must lie between 0 and 200, got nan"),
        ({"max_shift_mm": -0.1}, "max_shift_mm must lie between 0 and inf"),
        ({"max_jump_mm": float("nan")}, "max_jump_mm"),
        ({"min_agreement": 1.5}, "min_agreement must lie between 0 and 1, got 1.5"),
        ({"reference": ""}, "must have a name"),
        ({"contrasts": ()}, "names each one once"),
        ({"contrasts": ("T1w", "T1w")}, "names each one once"),
        ({"contrasts": "T1w"}, "names each one once, got 'T1w'"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GroundTruthSettings(**wrong)  # type: ignore[arg-type]


def test_settings_go_into_json() -> None:
    settings = GroundTruthSettings(contrasts=("T1w", "T2w"), smooth_mm=3.0)
    stored = json.loads(json.dumps(dataclasses.asdict(settings)))
    assert stored["contrasts"] == ["T1w", "T2w"]
    assert stored["smooth_mm"] == 3.0
    assert stored["reference"] == "T2w"


@pytest.mark.parametrize(
    ("values", "affine", "message"),
    [
        (np.zeros((2, 2)), np.eye(4), r"three axes, none of them empty, got shape \(2, 2\)"),
        (np.zeros((2, 2, 0)), np.eye(4), "none of them empty"),
        (np.zeros((2, 2, 2)), np.eye(3), "invertible"),
        (np.zeros((2, 2, 2)), np.diag([1.0, 1.0, 0.0, 1.0]), "invertible"),
        (np.zeros((2, 2, 2)), np.full((4, 4), np.nan), "invertible"),
    ],
)
def test_volumes_that_lie_nowhere_are_refused(values: np.ndarray, affine: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Volume(values.astype(np.float32), affine)


@pytest.mark.parametrize("thickness_mm", [0.0, -1.0, float("nan")])
def test_slices_without_thickness_are_refused(thickness_mm: float) -> None:
    with pytest.raises(UserError, match="thickness of a slice must be above 0 mm"):
        Volume(np.zeros((2, 2, 2), np.float32), np.eye(4), thickness_mm)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_upright_keeps_every_voxel_where_it_is_and_as_stored_turns_back(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((3, 4, 5)).astype(np.float32)
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * (0.5 + axis)
    affine[:3, :3] += rng.uniform(-0.1, 0.1, (3, 3))  # oblique
    affine[:3, 3] = rng.uniform(-50, 50, 3)
    stored = Volume(values, affine, thickness_mm=0.4)
    turned = upright(stored)
    assert (np.abs(turned.affine[:3, :3]).argmax(axis=0) == np.arange(3)).all()
    assert (np.diagonal(turned.affine)[:3] > 0).all()
    assert turned.thickness_mm == 0.4
    index = np.indices(values.shape).reshape(3, -1)
    there = turned.to_index(stored.to_world(index))
    np.testing.assert_allclose(there, np.rint(there), atol=1e-9)
    np.testing.assert_array_equal(turned.values[tuple(np.rint(there).astype(int))], values[tuple(index)])
    back = as_stored(turned.values, stored)
    np.testing.assert_array_equal(back.values, values)
    np.testing.assert_array_equal(back.affine, affine)


def test_cropping_leaves_what_is_there_where_it_is() -> None:
    values = np.zeros((6, 7, 8), np.float32)
    values[2:4, 3, 5:7] = 0.25
    whole = Volume(values, np.array([[1, 0.1, 0, 5], [0, 2, 0, 6], [0.2, 0, 3, 7], [0, 0, 0, 1]], float))
    part, start = cropped(whole)
    assert part.values.shape == (2, 1, 2)
    assert (part.values == 0.25).all()
    np.testing.assert_array_equal(start, (2, 3, 5))
    np.testing.assert_allclose(part.to_world(np.zeros((3, 1))), whole.to_world(np.array([[2], [3], [5]])))

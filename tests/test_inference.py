"""From a preprocessed case to its soft map: the crop, the tiles, the floor, the flags."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_softseg import case_record
from nnunet_softseg.inference import predict_soft_map
from nnunet_softseg.label_manager import SoftLabelManager
from nnunet_softseg.model_plans import soft_plans
from nnunet_softseg.network import add_reference_plateau, reference_plateau
from nnunet_softseg.settings import PLANS_KEY, SoftSegSettings


class Identity(torch.nn.Module):
    """A network whose raw output is its input, and which counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inputs.append(x.clone())
        return x


def predictor(
    patch: tuple[int, int, int], si_axis: int | None, learned_plateau: float = 0.0, **options: Any
) -> Any:
    made = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, **options)
    plans = soft_plans({"configurations": {}, "dataset_name": "D"}, "T", SoftSegSettings())
    plans[PLANS_KEY]["si_axis"] = si_axis
    made.plans_manager = SimpleNamespace(plans=plans)
    made.configuration_manager = SimpleNamespace(patch_size=list(patch))
    made.dataset_json = {"labels": {"background": 0, "cord": 1}}
    made.label_manager = SoftLabelManager(made.dataset_json["labels"], None)
    made.network = add_reference_plateau(Identity(), 1)
    reference_plateau(made.network).fill_(learned_plateau)
    return made


def height(values: torch.Tensor) -> float:
    """The plateau, written out."""
    x = values.double().clamp(min=0)
    return float((x**5).sum() / (x**4).sum())


def begin() -> dict[str, Any]:
    record = case_record.start({})
    case_record.set_under_way(record)
    return record


@given(st.integers(4, 40), st.integers(4, 40), st.integers(4, 40), st.sampled_from([0, 1, 2, None]))
@settings(max_examples=40)
def test_the_map_is_the_crop_divided_by_its_plateau_and_zero_outside(
    a: int, b: int, c: int, si_axis: int | None
) -> None:
    image = torch.rand(1, a, b, c) + 0.1
    made = predictor((8, 12, 16), si_axis)
    soft = predict_soft_map(made, image)
    seen = torch.zeros(a, b, c, dtype=torch.bool)
    box = [slice(max((n - p) // 2, 0), (n - p) // 2 + p) for n, p in zip((a, b, c), (8, 12, 16), strict=True)]
    for axis in range(3):
        if si_axis is None or axis == si_axis:
            box[axis] = slice(None)
    seen[tuple(box)] = True
    assert float(soft[0][~seen].sum()) == 0
    inside = image[0][tuple(box)]
    expected = (inside / height(inside)).clamp(max=1)
    torch.testing.assert_close(soft[0][tuple(box)], expected, atol=3e-6, rtol=0)


def test_one_pass_where_the_case_fits_and_tiles_along_si_only() -> None:
    made = predictor((16, 8, 8), 0)
    predict_soft_map(made, torch.rand(1, 16, 30, 30))
    assert len(made.network.inputs) == 1  # no mirroring, no tiles in-plane
    made = predictor((16, 8, 8), 0)
    predict_soft_map(made, torch.rand(1, 40, 30, 30))
    assert len(made.network.inputs) == 4  # starts 0, 8, 16, 24 at half steps
    assert {tuple(x.shape) for x in made.network.inputs} == {(1, 1, 16, 8, 8)}


def test_blending_is_in_float32() -> None:
    """nnU-Net's half precision would be off by 5e-4 of the value, and far more at the edge of a lone tile."""
    image = torch.full((1, 40, 8, 8), 0.37)
    image[:, 17:] = 0.21
    soft = predict_soft_map(predictor((16, 8, 8), 0, learned_plateau=2.0), image)
    torch.testing.assert_close(soft, image, atol=1e-6, rtol=0)  # the floor, half of 2, is the denominator


def test_a_weak_image_stays_weak_and_a_constant_one_is_empty() -> None:
    weak = 0.02 * torch.rand(1, 16, 8, 8)
    begin()
    soft = predict_soft_map(predictor((16, 8, 8), 0, learned_plateau=1.0), weak)
    torch.testing.assert_close(soft, weak / 0.5, atol=1e-6, rtol=0)  # the floor is half of the learned peak
    assert float(predict_soft_map(predictor((16, 8, 8), 0), torch.ones(1, 16, 8, 8)).sum()) == 0
    # and the next image is judged by itself
    assert float(predict_soft_map(predictor((16, 8, 8), 0), torch.rand(1, 16, 8, 8)).max()) == 1


def test_touching_the_border_of_the_crop_is_flagged_only_where_the_image_goes_on() -> None:
    image = torch.zeros(1, 16, 20, 8)
    image[0, :, 6:10, 3:5] = 1  # the crop of 8 starts at 6 along the second axis
    record = begin()
    predict_soft_map(predictor((16, 8, 8), 0), image)
    assert len(record["warnings"]) == 1
    assert "touches the border" in record["warnings"][0]
    record = begin()
    predict_soft_map(predictor((16, 20, 8), 0), image)
    assert record["warnings"] == []
    along_si = torch.zeros(1, 16, 20, 8)
    along_si[0, :, 9:11, 3:5] = 1  # reaches both ends of the image along S-I, as a cord does
    record = begin()
    predict_soft_map(predictor((16, 8, 8), 0), along_si)
    assert record["warnings"] == []


def test_a_weak_response_is_flagged() -> None:
    image = torch.rand(1, 16, 8, 8)
    for learned, weak in ((1.0, False), (3.0, True)):
        record = begin()
        predict_soft_map(predictor((16, 8, 8), 0, learned_plateau=learned), image)
        assert any("weak response for cord" in warning for warning in record["warnings"]) is weak


def test_the_record_tells_plateaus_and_seconds_of_every_fold() -> None:
    made = predictor((16, 8, 8), 0, learned_plateau=0.8)
    image = torch.zeros(1, 16, 8, 8)
    image[0, 3:7] = 1.25
    record = begin()
    predict_soft_map(made, image)
    predict_soft_map(made, image)
    assert record["labels"] == {"cord": {"raw_plateau": [1.25, 1.25], "raw_plateau_in_training": [0.8, 0.8]}}
    assert record["seconds"]["forward"] > 0


@pytest.mark.parametrize("use_mirroring", [True, False])
def test_mirroring_is_averaged_if_someone_asks_for_it(use_mirroring: bool) -> None:
    made = predictor((16, 8, 8), 0, use_mirroring=use_mirroring)
    made.allowed_mirroring_axes = (0,)
    image = torch.rand(1, 16, 8, 8)
    soft = predict_soft_map(made, image)
    assert len(made.network.inputs) == (2 if use_mirroring else 1)
    torch.testing.assert_close(soft[0], (image[0] / height(image)).clamp(max=1), atol=1e-6, rtol=0)

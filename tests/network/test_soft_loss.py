"""What the loss sees of the raw output."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_softseg.network import soft_loss
from nnunet_softseg.network.adaptive_wing import AdaptiveWingLoss
from nnunet_softseg.network.norm_relu import (
    normalised_for_loss,
    peak,
    update_running_scale,
)
from nnunet_softseg.network.soft_loss import SoftDiceLoss, SoftSegLoss
from nnunet_softseg.network.soft_map import robust_peak, soft_map_of
from nnunet_softseg.preprocessing.output_scale import OutputScale


def disc(size: int = 16) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.clamp((5 - torch.hypot(y - 7.5, x - 7.5)) / 2 + 0.5, 0, 1)[None, None]


def make(
    normalise: bool, weights: list[float] | None = None, labels: int = 1
) -> tuple[SoftSegLoss, torch.Tensor]:
    reference = torch.zeros(labels)
    loss = SoftSegLoss(
        AdaptiveWingLoss(),
        reference,
        level_weights=weights,
        normalise=normalise,
        floor_fraction=0.5,
        momentum=0.9,
    )
    return loss, reference


def test_raw_output_is_compared_as_it_is() -> None:
    loss, _ = make(normalise=False)
    raw = torch.randn(2, 1, 16, 16)
    target = disc().expand(2, -1, -1, -1)
    assert float(loss(raw, target)) == pytest.approx(float(AdaptiveWingLoss()(raw, target)))


def square() -> torch.Tensor:
    """A structure of constant height: its robust peak is its height."""
    target = torch.zeros(1, 1, 16, 16)
    target[..., 4:12, 5:11] = 1
    return target


@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_normalised_output_is_free_of_scale(scale: float) -> None:
    raw = disc() + 0.1 * torch.rand(1, 1, 16, 16)
    scaled, plain, exact = (make(normalise=True)[0] for _ in range(3))
    assert float(scaled(scale * raw, disc())) == pytest.approx(float(plain(raw, disc())), rel=1e-4)
    assert float(exact(scale * square(), square())) == pytest.approx(0, abs=1e-7)


def test_it_is_what_inference_does_where_the_raw_output_is_positive() -> None:
    raw = torch.rand(3, 2, 8, 8)
    target = torch.rand(3, 2, 8, 8)
    target[:, :, 0] = 1
    found = normalised_for_loss(raw, target, 0.5, torch.zeros(2))
    for sample in range(3):
        scales = [OutputScale(height=float(height)) for height in robust_peak(target)[sample].flatten()]
        expected = soft_map_of(raw[sample : sample + 1], torch.zeros(2), scales, 0.5)
        torch.testing.assert_close(found[sample : sample + 1].clamp(max=1), expected)


@given(st.integers(0, 2**31), st.floats(0.3, 1), st.floats(0.01, 50))
@settings(max_examples=30)
def test_raw_output_in_proportion_to_the_target_is_right_on_either_scale(
    seed: int, largest: float, unit: float
) -> None:
    """Per case in any unit, where the target is a label; fixed in its own."""
    target = torch.rand(1, 2, 6, 7, generator=torch.Generator().manual_seed(seed))
    target *= largest / target.flatten(2).amax(2)[..., None, None]
    fixed = torch.tensor([False, True])
    raw = target * torch.tensor([unit, 1.0]).reshape(1, 2, 1, 1)
    running = torch.tensor([float(robust_peak(raw)[0, 0]), 1.0])
    found = normalised_for_loss(raw, target, 0.5, running, fixed=fixed)
    assert largest <= 0.5 or torch.allclose(found[:, 0], target[:, 0], atol=1e-5)
    torch.testing.assert_close(found[:, 1], target[:, 1])
    scales = [OutputScale("case", float(robust_peak(target)[0, 0])), OutputScale("fixed")]
    torch.testing.assert_close(soft_map_of(raw, running, scales, 0.5), target, atol=1e-5, rtol=0)


def test_on_a_fixed_scale_the_running_scale_is_one() -> None:
    loss, reference = make(normalise=True, labels=2)
    loss.fixed = torch.tensor([True, False])
    loss(3 * square().expand(1, 2, -1, -1), square().expand(1, 2, -1, -1))
    assert reference.tolist() == pytest.approx([1.0, 3.0])


def test_above_one_costs_nothing_inside_and_something_at_the_boundary() -> None:
    target = square()
    target[..., 3, 5:11] = 0.4
    raw = torch.where(target == 1, torch.tensor(1.0), target)
    raw[..., 8, 8] = 1.5  # clipped at inference: the map is 1 there
    found = normalised_for_loss(raw, target, 0.5, torch.zeros(1))
    assert float(found[..., 8, 8]) == 1
    raw[..., 3, 8] = 1.5
    assert float(normalised_for_loss(raw, target, 0.5, torch.zeros(1))[..., 3, 8]) > 1.3


def test_a_patch_that_holds_the_fringe_is_scaled_to_it() -> None:
    target = 0.6 * square()
    found = normalised_for_loss(3 * target, target, 0.5, torch.tensor([1.8]))
    torch.testing.assert_close(found, target)


def test_a_patch_without_a_label_is_measured_against_the_running_peak() -> None:
    raw = torch.full((1, 1, 4, 4), 0.2)
    found = normalised_for_loss(raw, torch.zeros_like(raw), 0.5, torch.tensor([0.8]))
    torch.testing.assert_close(found, torch.full_like(raw, 0.25))


def test_negative_background_costs_nothing_and_gets_no_gradient() -> None:
    target = disc()
    raw = torch.where(target > 0, target, torch.tensor(-3.0)).requires_grad_()
    loss, _ = make(normalise=True)
    value = loss(raw, target)
    value.backward()
    assert value.item() == pytest.approx(loss(target, target).item(), abs=1e-7)
    assert float(raw.grad[target == 0].abs().max()) == 0


def test_a_head_that_went_negative_everywhere_still_gets_a_gradient() -> None:
    raw = torch.full((1, 1, 16, 16), -2.0, requires_grad=True)
    loss, _ = make(normalise=True)
    loss(raw, disc()).backward()
    assert float(raw.grad[disc() > 0].max()) < 0  # descending the loss raises the output at the label


@pytest.mark.parametrize("labelled", [1.0, 0.7, 0.0])
def test_the_gradient_is_the_slope_of_what_is_normalised(labelled: float) -> None:
    """Against finite differences: of a structure, of its fringe, of a patch without one."""
    target = labelled * torch.rand(2, 3, 4, 5, dtype=torch.float64)
    target[target < 0.3] = 0
    target[target > 0.8] = 1
    raw = torch.randn(2, 3, 4, 5, dtype=torch.float64).requires_grad_()

    def normalised(raw: torch.Tensor) -> torch.Tensor:
        return normalised_for_loss(raw, target, 0.5, torch.full((3,), 0.6))

    assert torch.autograd.gradcheck(normalised, raw)


def test_levels_are_weighted() -> None:
    loss, _ = make(normalise=False, weights=[0.75, 0.25])
    raws = [torch.randn(1, 1, 8, 8), torch.randn(1, 1, 4, 4)]
    targets = [torch.rand(1, 1, 8, 8), torch.rand(1, 1, 4, 4)]
    wing = AdaptiveWingLoss()
    expected = 0.75 * wing(raws[0], targets[0]) + 0.25 * wing(raws[1], targets[1])
    assert float(loss(raws, targets)) == pytest.approx(float(expected))


def test_running_peak_follows_labelled_samples_only() -> None:
    reference = torch.zeros(2)
    raw = torch.zeros(2, 2, 4)
    raw[0, 0, 1], raw[1, 0, 2], raw[0, 1, 0] = 3.0, 7.0, 5.0
    target = torch.zeros(2, 2, 4)
    target[0, 0, 1] = 1  # label 1 in sample 0 only, label 2 nowhere
    update_running_scale(reference, robust_peak(raw), peak(target), 0.9)
    assert reference.tolist() == [3.0, 0.0]
    raw[0, 0, 1] = 1.0
    update_running_scale(reference, robust_peak(raw), peak(target), 0.9)
    assert reference[0] == pytest.approx(0.9 * 3 + 0.1 * 1)


def test_validation_leaves_the_running_peak_alone() -> None:
    loss, reference = make(normalise=True)
    with torch.no_grad():
        loss(2 * square(), square())
    assert reference.tolist() == [0.0]
    loss(2 * square(), square())
    assert reference.tolist() == pytest.approx([2.0])


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_output_gives_a_finite_float32_loss_and_gradient(
    normalise: bool, dtype: torch.dtype
) -> None:
    loss, _ = make(normalise=normalise)
    raw = (1e4 * torch.randn(2, 1, 16, 16)).to(dtype).requires_grad_()
    value = loss(raw, disc().expand(2, -1, -1, -1))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(raw.grad).all()


def test_soft_dice_of_the_paper() -> None:
    p, y = torch.tensor([0.5, 1.0, 0.0]), torch.tensor([1.0, 0.5, 0.0])
    # -(2 * (0.5 + 0.5) + 1) / (1.5 + 1.5 + 1)
    assert float(SoftDiceLoss()(p, y)) == pytest.approx(-0.75)


def test_soft_dice_is_best_where_the_map_is_the_label() -> None:
    """On a fixed scale raw output above 1 is a map of 1: it must not pay, and where it is wrong come down."""
    y = torch.tensor([0.6, 0.9, 0.9, 0.0])
    losses = [float(SoftDiceLoss()(p, y)) for p in (y, torch.tensor([0.6, 20.0, 0.9, 0]), 20 * y)]
    # overlaps 0.36 + 0.81 + 0.81, 0.36 + 0.9 + 0.81, 2.4; sums of p 2.4, 21.5, 48
    assert losses == pytest.approx([-4.96 / 5.8, -5.14 / 24.9, -5.8 / 51.4])
    raw = torch.full((4,), 1.5, requires_grad=True)
    SoftDiceLoss()(raw, y).backward()
    assert float(raw.grad[3]) > 0


# In parts


class PrintedLoss(torch.nn.Module):
    """The two printed branches of the adaptive wing loss, whose slope autograd finds."""

    def forward(
        self, prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        d, p = (prediction - target).abs(), 2.1 - target
        half = 0.5**p
        a = 8 / (1 + half) * p * 0.5 ** (p - 1)
        curve = 8 * torch.log1p(d.clamp(min=1e-30, max=0.5) ** p)
        loss = torch.where(d < 0.5, curve, a * d - 0.5 * a + 8 * torch.log1p(half))
        return loss.mean() if weight is None else (loss * weight).sum() / weight.sum().clamp(min=1)


@pytest.mark.parametrize("cached", [5, 36, 2**18])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("with_weight", [True, False])
def test_the_loss_in_parts_is_that_which_autograd_takes_as_a_whole(
    normalise: bool, with_weight: bool, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four labels: one of a fixed scale, one absent, one that is all fringe; parts of rows and of many."""
    monkeypatch.setattr(soft_loss, "_CACHED", cached)
    generator = torch.Generator().manual_seed(0)
    target = (3 * torch.rand(2, 4, 5, 7, generator=generator) - 1).clamp(0, 1)
    target[:, 2], target[:, 3] = 0, 0.4 * target[:, 3]
    raw = 0.6 * torch.randn(2, 4, 5, 7, generator=generator) + 1.3 * target
    weight = torch.rand(2, 4, 5, 7, generator=generator) * (torch.arange(7) > 1)
    expected_target = torch.cat([target, weight], 1) if with_weight else target
    found = []
    for voxel_loss in (AdaptiveWingLoss(), PrintedLoss()):
        loss, scale = make(normalise, labels=4)
        loss.voxel_loss, loss.fixed = voxel_loss, torch.tensor([False, True, False, False])
        scale += 0.7
        leaf = raw.clone().requires_grad_()
        value = loss(leaf, expected_target)
        (3 * value).backward()
        found.append((value.detach(), scale, leaf.grad))
    for ours, autograds in zip(*found, strict=True):
        torch.testing.assert_close(ours, autograds, rtol=1e-4, atol=1e-6)
    assert float(found[0][2].abs().max()) > 0.05


@pytest.mark.parametrize(
    ("voxel_loss", "in_parts"),
    [
        (AdaptiveWingLoss(), True),
        (AdaptiveWingLoss(reduction="mean"), True),
        (AdaptiveWingLoss(reduction="none"), False),  # there is no sum to collect
        (PrintedLoss(), False),
    ],
)
def test_what_has_its_slope_goes_in_parts(
    voxel_loss: torch.nn.Module, in_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    by_parts = soft_loss.loss_in_parts
    monkeypatch.setattr(soft_loss, "loss_in_parts", lambda *given: taken.append(1) or by_parts(*given))
    loss, _ = make(normalise=True)
    loss.voxel_loss = voxel_loss
    loss(0.7 * disc() + 0.1, disc())
    assert bool(taken) == in_parts


def test_parts_fit_into_the_cache_of_a_processor_and_a_gpu_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_loss, "_CACHED", 20)
    for device, groups, parts in (
        ("cpu", [slice(0, 2), slice(2, 4), slice(4, 6)], [slice(0, 8)]),
        ("meta", [slice(0, 5)], [slice(0, 8)]),
    ):
        flat = torch.empty(5, 8, device=device)
        assert list(soft_loss._groups(flat)) == groups
        assert list(soft_loss._parts(flat)) == parts
    assert list(soft_loss._groups(torch.empty(2, 50))) == [slice(0, 1), slice(1, 2)]
    assert list(soft_loss._parts(torch.empty(1, 50))) == [slice(0, 20), slice(20, 40), slice(40, 60)]
    assert list(soft_loss._parts(torch.empty(1, 50, device="meta"))) == [slice(0, 50)]
    assert soft_loss._nothing_positive(torch.tensor([-1.0, 0.0]))
    assert not soft_loss._nothing_positive(torch.tensor([-1.0, torch.nan]))
    assert not soft_loss._nothing_positive(torch.zeros(3, device="meta"))  # nobody asks a GPU


@pytest.mark.parametrize("normalise", [True, False])
def test_a_network_that_diverged_is_not_taken_for_one_without_output(normalise: bool) -> None:
    loss, _ = make(normalise, labels=2)
    raw = torch.full((1, 2, 8, 8), -1.0)
    raw[0, 1, 3, 4] = torch.nan
    assert loss(raw, torch.zeros_like(raw)).isnan()


# Unknown voxels

KNOWN = (slice(None), slice(None), slice(None), slice(0, 10))
"""The part of a patch of 16 x 16 that was annotated."""


def weighted(target: torch.Tensor, elsewhere: torch.Tensor) -> torch.Tensor:
    weight = torch.zeros_like(target)
    weight[KNOWN] = 1
    return torch.cat([torch.where(weight > 0, target, elsewhere), weight], dim=1)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    "voxel_loss", [AdaptiveWingLoss(), AdaptiveWingLoss(reduction="sum"), SoftDiceLoss()]
)
def test_loss_and_gradient_are_those_of_the_known_voxels_alone(
    normalise: bool, voxel_loss: torch.nn.Module
) -> None:
    torch.manual_seed(0)
    losses, gradients, scales = [], [], []
    raw, target = disc() + 0.3 * torch.randn(2, 1, 16, 16), disc().expand(2, -1, -1, -1)
    for values, expected in [(raw, weighted(target, 0 * target)), (raw[KNOWN], target[KNOWN])]:
        loss, scale = make(normalise)
        loss.voxel_loss = voxel_loss
        leaf = values.clone().requires_grad_()
        value = loss(leaf, expected)
        value.backward()
        losses.append(value.detach())
        gradients.append(leaf.grad)
        scales.append(scale)
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(scales[0], scales[1])
    rounding = 1e-5 * float(gradients[1].abs().max())
    torch.testing.assert_close(gradients[0][KNOWN], gradients[1], rtol=1e-5, atol=rounding)
    assert float(gradients[0][..., 10:].abs().max()) == 0


def test_a_patch_without_known_voxels_costs_nothing() -> None:
    loss, scale = make(normalise=True)
    raw = torch.randn(1, 1, 16, 16, requires_grad=True)
    value = loss(raw, torch.zeros(1, 2, 16, 16))
    value.backward()
    assert (float(value.detach()), float(scale), float(raw.grad.abs().max())) == (0, 0, 0)


def test_a_resumed_training_measures_empty_patches_at_coarse_levels_as_before() -> None:
    """The running scale of the full resolution alone is in the checkpoint."""
    labelled, empty = [disc(), disc()], [torch.zeros_like(disc())] * 2
    loss, scale = make(normalise=True, weights=[0.5, 0.5])
    for _ in range(60):
        loss([5 * disc(), 5 * disc()], labelled)
    residue = [0.1 * torch.ones_like(disc())] * 2
    resumed, other = make(normalise=True, weights=[0.5, 0.5])
    other.copy_(scale)
    resumed.start_coarse_scales()
    with torch.no_grad():
        assert float(resumed(residue, empty)) == pytest.approx(float(loss(residue, empty)), rel=1e-4)


def test_coarse_levels_go_on_where_a_training_has_left_them() -> None:
    """A structure that no coarse level shows above one half: its scale there was never measured."""
    small = [disc(), 0.2 * disc()]
    loss, scale = make(normalise=True, weights=[0.5, 0.5], labels=1)
    for _ in range(3):
        loss([5 * disc(), 5 * disc()], small)
    assert loss.coarse_scales == [[0.0]]
    resumed, other = make(normalise=True, weights=[0.5, 0.5])
    other.copy_(scale)
    resumed.start_coarse_scales(loss.coarse_scales)
    raw = [5 * disc(), 0.3 * disc()]
    assert float(resumed(raw, small)) == float(loss(raw, small))


def test_coarse_voxels_count_by_their_weight() -> None:
    """Of four voxels one is known, of the four beside it all: the second counts four times as much."""
    loss, _ = make(normalise=False)
    raw = torch.tensor([[[[0.2, 0.9]]]])
    target = torch.tensor([[[[0.6, 0.4]], [[0.25, 1.0]]]])
    wing = AdaptiveWingLoss(reduction="none")(raw, target[:, :1]).flatten()
    assert float(loss(raw, target)) == pytest.approx(float(wing[0] * 0.25 + wing[1]) / 1.25)

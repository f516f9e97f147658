"""Each change of colour against torchvision's float function, with one parameter per image, and its analytic facts."""

from itertools import permutations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as torchvision

from ssl_zoo.views import colour
from ssl_zoo.views.operations import Jitter, jitter_steps

ADJUST = {
    "brightness": torchvision.adjust_brightness,
    "contrast": torchvision.adjust_contrast,
    "saturation": torchvision.adjust_saturation,
    "hue": torchvision.adjust_hue,
}
FACTORS = {
    "brightness": (0.0, 0.4, 1.0, 1.3, 2.0),
    "contrast": (0.0, 0.4, 1.0, 1.3, 2.0),
    "saturation": (0.0, 0.4, 1.0, 1.3, 2.0),
    "hue": (-0.5, -0.2, 0.0, 0.07, 0.5),
}
ORDERS = list(permutations(range(4)))


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def each(factor, images):
    return torch.full((len(images),), factor, dtype=images.dtype)


def changed(name, images, factors):
    """A copy of the images changed by `name`, so that the images stay to compare with."""
    return getattr(colour, name + "_")(images.clone(), factors)


def factors_of(n, seed=0):
    """[n, 4]: brightness, contrast, saturation from 0 to 2, and up to half a turn of hue either way."""
    return noise(n, 4, seed=seed) * torch.tensor([2, 2, 2, 1]) - torch.tensor([0, 0, 0, 0.5])


def by_torchvision(images, factors, orders):
    """Each image through torchvision's four functions in its own order."""
    views = []
    for image, factor, order in zip(images, factors.tolist(), orders, strict=True):
        for operation in order:
            image = list(ADJUST.values())[operation](image, factor[operation])
        views.append(image)
    return torch.stack(views)


def steps_of(factors, orders, jittered=1):
    """What the table's way makes of factors and orders, [N, STEPS]."""
    columns = np.zeros((1, len(orders)), Jitter.columns)
    columns["applied"], columns["factors"], columns["order"] = jittered, factors.numpy(), orders
    return torch.from_numpy(jitter_steps(columns)[0])


@pytest.mark.parametrize("name", ADJUST)
def test_one_call_gives_each_image_torchvision_s_change_by_its_own_factor(name):
    images = noise(5, 3, 12, 9)
    images[0, :, :4] = images[0, :1, :4]      # some gray, black and white pixels
    images[1, :, :4], images[2, :, :4] = 0, 1
    views = changed(name, images, torch.tensor(FACTORS[name]))
    expected = torch.stack([ADJUST[name](image, factor) for image, factor in zip(images, FACTORS[name], strict=True)])
    assert torch.allclose(views, expected, atol=2e-6)


def test_grayscale_is_torchvision_s():
    images = noise(2, 3, 6, 5)
    assert torch.allclose(colour.grayscale(images), torchvision.rgb_to_grayscale(images), atol=1e-6)


@pytest.mark.parametrize("name", ADJUST)
def test_neutral_factors_change_nothing(name):
    images = noise(2, 3, 6, 5)
    neutral = each(0.0 if name == "hue" else 1.0, images)
    assert torch.allclose(changed(name, images, neutral), images, atol=1e-6)


def test_brightness_is_a_product_cut_off_at_white():
    images = torch.tensor([0.1, 0.4, 0.6]).view(1, 3, 1, 1)
    assert torch.allclose(changed("brightness", images, torch.tensor([2.0])).flatten(), torch.tensor([0.2, 0.8, 1.0]))


def test_no_contrast_leaves_the_mean_luma_of_each_image_by_itself():
    images = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.9)])
    images[:, 2] = 0
    flat = changed("contrast", images, torch.zeros(2))
    for image, level in zip(flat, (0.2, 0.9), strict=True):
        assert torch.allclose(image, torch.full((3, 4, 4), level * (0.2989 + 0.587)))


def test_no_saturation_leaves_the_luma_of_each_pixel():
    images = noise(2, 3, 4, 4)
    gray = colour.grayscale(images).expand_as(images)
    assert torch.allclose(changed("saturation", images, torch.zeros(2)), gray, atol=1e-6)


@pytest.mark.parametrize(("thirds", "places"), [(1, 1), (-1, -1), (2, 2), (3, 0)])
def test_a_third_of_a_turn_of_hue_moves_red_to_green_to_blue(thirds, places):
    images = noise(4, 3, 16, 16)
    turned = changed("hue", images, each(thirds / 3, images))
    assert torch.allclose(turned, images.roll(places, 1), atol=1e-5)


@pytest.mark.parametrize(("turns", "colour"), [
    (0, (1, 0, 0)), (1 / 12, (1, 0.5, 0)), (1 / 6, (1, 1, 0)), (1 / 3, (0, 1, 0)), (1 / 2, (0, 1, 1)),
    (2 / 3, (0, 0, 1)), (-1 / 6, (1, 0, 1)), (-1 / 12, (1, 0, 0.5)),
])
def test_red_turns_into_the_colours_of_the_wheel(turns, colour):
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    turned = changed("hue", red, torch.tensor([turns])).flatten()
    assert torch.allclose(turned, torch.tensor(colour).float(), atol=1e-6)


@pytest.mark.parametrize("turns", [0.03, 0.17, 0.5])
def test_hue_turns_back_and_keeps_the_highest_and_lowest_channel(turns):
    images = noise(4, 3, 16, 16).double()
    turned = changed("hue", images, each(turns, images))
    assert (turned - images).abs().mean() > 0.01
    assert torch.allclose(changed("hue", turned, each(-turns, images)), images, atol=1e-12)
    assert torch.allclose(turned.amax(1), images.amax(1), atol=1e-12)
    assert torch.allclose(turned.amin(1), images.amin(1), atol=1e-12)


def test_half_a_turn_is_the_same_either_way():
    images = noise(4, 3, 16, 16)
    forward, backward = (changed("hue", images, each(turns, images)) for turns in (0.5, -0.5))
    assert torch.allclose(forward, backward, atol=1e-5)


@pytest.mark.parametrize("turns", [-0.5, -0.2, 0.3, 0.5])
def test_gray_has_no_hue_to_turn(turns):
    images = noise(4, 1, 8, 8).expand(-1, 3, -1, -1).contiguous()
    assert torch.allclose(changed("hue", images, each(turns, images)), images, atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_flat_images_stay_finite_and_between_black_and_white(level, order):
    images = torch.full((2, 3, 8, 8), level)
    factors = torch.tensor([[2.0, 2.0, 2.0, 0.5], [0.0, 0.0, 0.0, -0.5]])
    for jittered in (colour.jitter_all(images, steps_of(factors, [order] * 2)),
                     colour.jitter_(images.clone(), factors, order)):
        blurred = colour.gaussian_blur(jittered, torch.tensor([0.1, 2.0]), 3)
        views = colour.solarize(blurred, 0.5)
        assert views.isfinite().all()
        assert views.min() >= 0
        assert views.max() <= 1 + 1e-6


def test_changes_in_place_give_back_the_images_that_they_changed():
    for name in ADJUST:
        images = noise(2, 3, 6, 5)
        before = images.clone()
        assert getattr(colour, name + "_")(images, each(0.3, images)) is images
        assert not torch.equal(images, before)
    images = noise(2, 3, 6, 5)
    assert colour.jitter_(images, factors_of(2), (0, 1, 2, 3)) is images


@pytest.mark.parametrize("order", ORDERS)
def test_jitter_is_torchvision_s_four_changes_in_the_order_that_it_is_given(order):
    images, factors = noise(5, 3, 10, 12), factors_of(5, seed=1)
    expected = by_torchvision(images, factors, [order] * 5)
    assert torch.allclose(colour.jitter_(images.clone(), factors, order), expected, atol=2e-5)


def test_jitter_of_all_is_torchvision_s_four_changes_in_each_image_s_own_order():
    orders, images, factors = ORDERS * 4, noise(96, 3, 10, 12), factors_of(96, seed=2)
    views = colour.jitter_all(images, steps_of(factors, orders))
    assert torch.allclose(views, by_torchvision(images, factors, orders), atol=2e-5)


def test_jitter_of_all_is_the_jitter_in_place_of_each_image_in_its_own_order():
    orders, images, factors = ORDERS * 8, noise(192, 3, 9, 7), factors_of(192, seed=3)
    views = colour.jitter_all(images, steps_of(factors, orders))
    expected = torch.cat([colour.jitter_(images[i:i + 1].clone(), factors[i:i + 1], order)
                          for i, order in enumerate(orders)])
    assert torch.allclose(views, expected, atol=1e-5)


def test_jitter_of_all_leaves_the_images_that_are_not_jittered_and_its_argument():
    images, jittered = noise(24, 3, 9, 7), np.arange(24) % 3 == 0
    before = images.clone()
    views = colour.jitter_all(images, steps_of(factors_of(24), ORDERS, jittered))
    assert torch.equal(images, before)
    assert torch.allclose(views[~jittered], images[~jittered], rtol=0, atol=1e-6)
    assert ((views[jittered] - images[jittered]).abs().amax((1, 2, 3)) > 0.01).all()


def test_there_are_as_many_steps_as_jitter_of_all_takes():
    assert steps_of(factors_of(24), ORDERS).shape == (24, colour.STEPS)


@pytest.mark.parametrize("kernel", [3, 9, 13])
def test_blur_is_torchvision_s_with_the_same_kernel_and_each_image_s_own_sigma(kernel):
    images, sigma = noise(18, 3, 14, 17), torch.linspace(0.1, 2.0, 18)
    expected = torch.stack([torchvision.gaussian_blur(image, [kernel, kernel], [s, s])
                            for image, s in zip(images, sigma.tolist(), strict=True)])
    assert torch.allclose(colour.gaussian_blur(images, sigma, kernel), expected, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3, 13])
def test_a_blur_of_sigma_zero_changes_nothing_beside_others_that_do(kernel):
    images = noise(3, 3, 14, 17)
    views = colour.gaussian_blur(images, torch.tensor([0.0, 1.5, 0.0]), kernel)
    assert torch.equal(views[[0, 2]], images[[0, 2]])
    assert torch.equal(views[1], images[1]) == (kernel == 1)


def test_blur_in_half_precision_is_off_by_less_than_half_a_level():
    images, sigma = noise(8, 3, 32, 32), torch.linspace(0.1, 2.0, 8)
    exact = colour.gaussian_blur(images, sigma, 13)
    half = colour.gaussian_blur(images, sigma, 13, torch.float16)
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.5 / 255


def test_blur_spreads_a_point_as_a_gaussian():
    point = torch.zeros(1, 3, 31, 31)
    point[..., 15, 15] = 1
    distance = torch.arange(31.0) - 15
    line = (-0.5 * (distance / 1.5) ** 2).exp() * (distance.abs() <= 6)
    line = line / line.sum()
    blurred = colour.gaussian_blur(point, torch.tensor([1.5]), 13)
    assert torch.allclose(blurred, line.outer(line).expand(1, 3, -1, -1), atol=1e-6)


def test_blur_keeps_a_flat_image_up_to_its_border_and_a_kernel_of_one_keeps_all():
    flat, images = torch.full((2, 3, 9, 9), 0.3), noise(2, 3, 9, 9)
    assert torch.allclose(colour.gaussian_blur(flat, torch.tensor([0.1, 2.0]), 13), flat, atol=1e-6)
    assert torch.allclose(colour.gaussian_blur(images, torch.tensor([0.1, 2.0]), 1), images, atol=1e-6)


def test_solarize_inverts_from_the_threshold_on_as_torchvision_does_with_bytes():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(-1, 3, -1, -1)
    solarized = colour.solarize(levels / 255, 128 / 255)
    assert torch.allclose(solarized, torchvision.solarize(levels, 128) / 255, atol=1e-6)
    assert solarized[0, 0].flatten()[127].item() == pytest.approx(127 / 255)
    assert solarized[0, 0].flatten()[128].item() == pytest.approx(127 / 255)


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, (1, 0.75, 0)), (0.25, (0, 0.75, 0)), (1.0, (0, 0.25, 0))])
def test_solarize_at_its_limits_inverts_everything_or_white_alone(threshold, expected):
    images = torch.tensor([0.0, 0.25, 1.0]).view(1, 3, 1, 1)
    assert colour.solarize(images, threshold).flatten().tolist() == pytest.approx(expected)

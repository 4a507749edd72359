"""Damage to an image's pixels, as augmentation."""

import numpy as np
import pytest

from data.damage import Damage, damaged, draw_damage

SIZE = 64


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Coloured noise over a coloured ramp."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(40, 200, SIZE)[:, None, None] * np.array([1.0, 0.8, 0.6])
    return (ramp + rng.normal(0, 20, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)


def detail(image: np.ndarray) -> float:
    return float(np.abs(np.diff(image.astype(float), axis=1)).mean())


def test_without_a_probability_nothing_happens_and_nothing_is_copied(picture):
    assert draw_damage(0.0, np.random.default_rng(0)) == Damage()
    assert damaged(picture, Damage()) is picture


def test_a_probability_changes_which_kinds_happen_and_not_how_strong_they_are():
    always = draw_damage(1.0, np.random.default_rng(3))
    some = [draw_damage(0.5, np.random.default_rng(3))]
    assert any(getattr(damage, name) == getattr(always, name) != getattr(Damage(), name)
               for damage in some for name in ("blur", "gamma", "contrast", "noise", "jpeg", "shrink", "grey"))
    after = [np.random.default_rng(3), np.random.default_rng(3)]
    for probability, rng in zip((0.0, 1.0), after, strict=True):
        draw_damage(probability, rng)
    assert after[0].random() == after[1].random()


def test_every_kind_happens_as_often_as_asked():
    rng = np.random.default_rng(1)
    drawn = [draw_damage(0.3, rng) for _ in range(2000)]
    for name in ("blur", "shrink", "gamma", "contrast", "grey", "noise", "jpeg"):
        share = np.mean([getattr(damage, name) != getattr(Damage(), name) for damage in drawn])
        assert abs(share - 0.3) < 0.04, name
    assert abs(np.mean([damage.motion[0] > 0 for damage in drawn]) - 0.3) < 0.04
    assert abs(np.mean([damage.cut[2] > 0 for damage in drawn]) - 0.3) < 0.04


@pytest.mark.parametrize("damage", [Damage(blur=0.015), Damage(motion=(0.06, 1.0)), Damage(shrink=0.3)])
def test_blur_motion_and_shrinking_take_detail_and_leave_the_mean(picture, damage):
    result = damaged(picture, damage)
    assert detail(result) < 0.8 * detail(picture)
    assert abs(result.astype(float).mean() - picture.astype(float).mean()) < 1


def test_the_tones_are_those_worked_out_by_hand():
    image = np.full((SIZE, SIZE, 3), 64, dtype=np.uint8)
    assert (damaged(image, Damage(gamma=2.0)) == round(255 * (64 / 255) ** 2)).all()
    assert (damaged(image, Damage(contrast=0.5)) == round(255 * ((64 / 255 - 0.5) / 2 + 0.5))).all()


def test_grey_has_no_colour_and_noise_has_its_strength(picture):
    grey = damaged(picture, Damage(grey=1.0)).astype(int)
    assert np.ptp(grey, axis=-1).max() <= 1
    flat = np.full((SIZE, SIZE, 3), 128, dtype=np.uint8)
    assert abs(damaged(flat, Damage(noise=10.0, seed=4)).astype(float).std() - 10) < 0.5


def test_a_cut_is_a_box_of_one_colour_and_the_rest_stays(picture):
    result = damaged(picture, Damage(cut=(0.25, 0.5, 0.25, 0.125)))
    box = result[32:40, 16:32]
    assert (box == box[0, 0]).all()
    outside = np.ones((SIZE, SIZE), dtype=bool)
    outside[32:40, 16:32] = False
    assert (result[outside] == picture[outside]).all()


def test_strong_compression_changes_pixels_and_keeps_the_image(picture):
    result = damaged(picture, Damage(jpeg=20))
    difference = np.abs(result.astype(int) - picture)
    assert 2 < difference.mean() < 25 and result.shape == picture.shape and result.dtype == np.uint8


def test_any_damage_leaves_the_original_as_it_was(picture):
    before, rng = picture.copy(), np.random.default_rng(7)
    for _ in range(50):
        result = damaged(picture, draw_damage(0.5, rng))
        assert result.shape == picture.shape and result.dtype == np.uint8
    assert (picture == before).all()

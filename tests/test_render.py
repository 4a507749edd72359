"""Pictures of hands: what decides them, and what they show."""

import cv2
import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import ConvexHull

from common.geometry import apply_affine
from common.hands import Hand
from common.mano.load import load_hand_model
from common.view.rasterizer import rasterize
from data.synthetic.batches import RenderedBatches, pose_bank
from data.synthetic.on_disk.generate import stack_hands
from data.synthetic.picture import render as renderer
from data.synthetic.picture.body import SKIN, build_body, sample_wear
from data.synthetic.picture.develop import jpeg, resampled
from data.synthetic.picture.dice import Dice
from data.synthetic.picture.lighting import visibility
from data.synthetic.picture.render import hand_mask, load_assets, sample_body
from data.synthetic.picture.skin import MAP_CHANNELS, skin_albedo
from data.synthetic.pose.posing import build_hand_set, pose_steps
from data.synthetic.surface import boundary_loop
from tool.dev.picture_spectrum import agreement, band_centers, power_spectrum

SIZE = 96


@pytest.fixture(scope="module")
def hands():
    return build_hand_set(load_hand_model("builtin"))


@pytest.fixture(scope="module")
def assets(hands):
    return load_assets(hands.surface, hands.model.template[Hand.RIGHT].numpy())


@pytest.fixture(scope="module")
def batches(hands, assets):
    rngs = [np.random.default_rng(k) for k in range(3)]
    steps = pose_steps(["palm_to_palm", "right", "left"], np.zeros((3, 10)), rngs, hands.solver)
    return RenderedBatches(pose_bank(steps, [np.zeros(10)] * 3, hands), assets, size=SIZE, box_ratio=0.8, seed=5,
                           rows=torch.arange(9) % 3)


def sphere_px(radius, depth):
    """A ball in front of a camera, in pixels of a 32² picture."""
    ball = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    points = ball.vertices * (1, -1, -1) + (0, 0, depth)            # y down, z forward: still wound outwards
    pixels = points[:, :2] / points[:, 2:] * 40 + 15.5
    seen = np.concatenate([pixels, points[:, 2:]], axis=1)
    return torch.from_numpy(seen), torch.from_numpy(ball.faces.astype(np.int64))


# ---------------------------------------------------------------- dice

def test_a_die_depends_on_its_key_and_the_name_alone():
    keys = torch.arange(100)
    together, alone = Dice.of("a", keys), Dice.of("a", keys[7:8])
    assert torch.equal(together.uniform("x", 0, 1, 3)[7:8], alone.uniform("x", 0, 1, 3))
    assert torch.equal(together.normal("x", 2)[7:8], alone.normal("x", 2))
    assert not torch.equal(together.uniform("x"), together.uniform("y"))
    assert not torch.equal(together.uniform("x"), Dice.of("b", keys).uniform("x"))


def test_dice_are_fair_and_names_independent():
    dice = Dice.of(1, torch.arange(20000))
    first, second, normal = dice.uniform("first"), dice.uniform("second"), dice.normal("normal")
    assert first.mean() == pytest.approx(0.5, abs=0.01) and first.var() == pytest.approx(1 / 12, abs=0.002)
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(0, abs=0.03)
    assert np.corrcoef(first[1:], first[:-1])[0, 1] == pytest.approx(0, abs=0.03)
    assert normal.mean() == pytest.approx(0, abs=0.03) and normal.std() == pytest.approx(1, abs=0.02)
    counts = torch.bincount(dice.pick("kind", (0.5, 0.0, 0.3, 0.2))) / 20000
    np.testing.assert_allclose(counts, [0.5, 0.0, 0.3, 0.2], atol=0.015)


# ---------------------------------------------------------------- geometry

def test_culling_leaves_the_near_or_the_far_side_of_a_closed_body():
    pixels, faces = sphere_px(0.2, 1.0)
    both, near, far = (rasterize(pixels[None], faces, 32, 32, facing).depth[0] for facing in (0, 1, -1))
    seen = both.isfinite()
    torch.testing.assert_close(near, both)
    assert (far[seen] > near[seen]).float().mean() > 0.95
    assert far[16, 16] == pytest.approx(1.2, abs=0.01) and near[16, 16] == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("hand", Hand)
def test_limbs_are_closed_round_the_wrist_and_wound_outwards(hand, hands, assets):
    """The hand and its arm are one surface, and its signed volume seen from the open end is that of an arm."""
    step, = pose_steps([hand.label], np.zeros((1, 10)), [np.random.default_rng(0)], hands.solver)
    dice = Dice.of(torch.tensor([3]))
    wear = sample_wear(dice, dice, dice)
    vertices = build_body(stack_hands([step]), wear, dice, dice, assets.topology).vertices[0].double().numpy()
    of_limb = (assets.topology.material == SKIN) & (assets.topology.part == hand)
    skin = assets.topology.faces[of_limb].numpy()
    border = boundary_loop(skin)
    volume = np.linalg.det(vertices[skin] - vertices[border].mean(axis=0)).sum() / 6
    assert len(border) == 32 and 5e-4 < volume < 5e-3


def bodies_with_objects(hands, assets, kinds):
    """Bodies (len(kinds)) that all wear watches and should hold an object, and their hands."""
    count = len(kinds)
    rngs = [np.random.default_rng(k) for k in range(count)]
    posed = stack_hands(pose_steps(kinds, np.zeros((count, 10)), rngs, hands.solver))
    dice = Dice.of(torch.arange(count))
    wear = sample_wear(dice, dice, dice)
    wear = wear._replace(watch=torch.ones(count, 2, dtype=torch.bool), object=torch.ones(count, dtype=torch.bool))
    return build_body(posed, wear, dice, dice, assets.topology), posed


def test_watches_are_wound_outwards_on_both_hands(hands, assets):
    body, _ = bodies_with_objects(hands, assets, [hand.label for hand in Hand])
    for hand in Hand:
        corners = body.vertices[hand][assets.topology.faces[assets.topology.part == 20 + hand]].double()
        volume = torch.linalg.det(corners - corners.mean(dim=(0, 1))).sum() / 6
        assert 1e-7 < volume < 1e-3, hand


def test_held_things_are_wound_outwards_and_no_hand_reaches_into_them(hands, assets):
    body, posed = bodies_with_objects(hands, assets, [hand.label for hand in Hand] * 6)
    faces, held = assets.topology.faces[assets.topology.part == 22], 0
    for number in range(len(body.vertices)):
        corners = body.vertices[number][faces].double()
        volume = torch.linalg.det(corners - corners.mean(dim=(0, 1))).sum() / 6
        if volume == 0:
            continue                                        # did not fit
        held += 1
        assert 1e-8 < volume < 1e-3
        planes = ConvexHull(corners.flatten(0, 1).numpy()).equations
        hand = posed.vertices[number][posed.present[number]].flatten(0, 1).double().numpy()
        outside = (hand @ planes[:, :3].T + planes[:, 3]).max(axis=1)
        assert -5e-4 < outside.min() < 0.012                  # metres: touched, or nearly
    assert held >= 6


def test_a_plate_casts_its_shadow_and_no_more():
    plate = trimesh.creation.box((0.04, 0.01, 0.04))
    points = torch.tensor([[0.0, -0.05, 0], [0.012, -0.05, 0.012], [0.035, -0.05, 0], [0, -0.05, 0.15], [0, 0.005, 0]])
    up = torch.tensor([0.0, 1.0, 0.0])
    lit = visibility(points[None], up.expand(1, 5, 3), torch.from_numpy(plate.vertices)[None].float(),
                     torch.from_numpy(plate.faces.astype(np.int64)), up[None, None], torch.zeros(1, 3))
    np.testing.assert_allclose(lit[0, 0], [0, 0, 1, 1, 1], atol=1e-6)


# ---------------------------------------------------------------- skin, lens, film

def test_more_melanin_is_darker_and_palms_stay_pale():
    melanin = torch.linspace(0.05, 2.7, 8)
    person = torch.stack([melanin, *(torch.full_like(melanin, value) for value in (0.25, 1.0, 0.0))])
    plain = torch.zeros(len(MAP_CHANNELS), 8)
    palm = plain.clone()
    palm[MAP_CHANNELS.index("palm")] = 1
    back, inside = (skin_albedo(detail, torch.zeros(8), torch.zeros(8), person).T for detail in (plain, palm))
    assert (back.diff(dim=0) < 0).all() and (back[:, 0] > back[:, 1]).all() and (back[:, 1] > back[:, 2]).all()
    ratio = inside.mean(dim=1) / back.mean(dim=1)
    assert ratio[-1] > 1.8 and ratio[0] == pytest.approx(1, abs=0.1)
    assert back[0].mean() > 0.5 and back[-1].mean() < 0.06


def test_a_lens_keeps_even_light_and_spreads_a_point_as_wide_as_it_says():
    even = resampled(torch.ones(1, 1, 80, 60), torch.tensor([1.2]), torch.tensor([0.4]), 64, 48)
    torch.testing.assert_close(even, torch.ones(1, 64, 48, 1))
    point = torch.zeros(1, 1, 65, 65)
    point[..., 32, 32] = 1
    spread = resampled(point, torch.tensor([2.0]), torch.zeros(1), 65, 65)[0, ..., 0]
    place = torch.arange(65) - 32.0
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    assert (spread.sum(dim=0) * place**2).sum().sqrt() == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_simulated_jpeg_is_jpeg(quality):
    y, x = np.mgrid[:64, :64] / 64
    picture = np.stack([x, y, 0.5 + 0.4 * np.sin(9 * x * y)], axis=-1)
    picture = (255 * picture + np.random.default_rng(0).normal(0, 12, picture.shape)).clip(0, 255).astype(np.uint8)
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    stored = cv2.imdecode(cv2.imencode(".jpg", picture[..., ::-1], flags)[1], cv2.IMREAD_COLOR)[..., ::-1]
    found = 255 * jpeg(torch.from_numpy(picture)[None].float() / 255, torch.tensor([float(quality)]))[0].numpy()
    assert np.abs(found - stored).mean() < 0.35 * np.abs(picture - stored.astype(float)).mean()


# ---------------------------------------------------------------- batches

def test_a_sample_is_a_function_of_seed_epoch_and_index(batches):
    first = batches.batch(2, torch.tensor([3, 8]))
    swapped = batches.batch(2, torch.tensor([8, 3]))
    assert (first.image - swapped.image.flip(0)).abs().mean() < 1e-3    # sums may round otherwise
    torch.testing.assert_close(first.targets.joints_crop, swapped.targets.joints_crop.flip(0))
    assert (batches.batch(3, torch.tensor([3])).image - first.image[:1]).abs().mean() > 0.02


def test_targets_are_where_the_picture_shows_hands(batches, monkeypatch):
    """Projected vertices of present hands against the drawn mask of the hands."""
    shown = []
    original = renderer.render
    def spy(hands, view, keys, assets, height, width):
        shown.append(hand_mask(sample_body(hands, keys, assets), view, assets, height, width))
        return original(hands, view, keys, assets, height, width)

    monkeypatch.setattr("data.synthetic.batches.render", spy)
    batch = batches.batch(0, torch.arange(6))
    targets = batch.targets
    vertices = targets.vertices + targets.wrist[:, :, None]
    for sample in range(6):
        on_hand = 0, 0
        for hand in np.flatnonzero(targets.vertices_valid[sample].numpy()):
            cam = vertices[sample, hand].double().numpy()
            pixels = apply_affine(batch.camera_crop[sample].double().numpy(), cam[:, :2] / cam[:, 2:])
            inside = ((pixels >= 0) & (pixels <= SIZE - 1)).all(axis=1)
            x, y = np.round(pixels[inside]).astype(int).T
            on_hand = on_hand[0] + shown[0][sample].numpy()[y, x].sum(), on_hand[1] + len(pixels)
        assert on_hand[0] / on_hand[1] > 0.8
        valid = targets.joints_annotated_valid[sample].bool()
        flat = targets.joints_annotated[sample][valid] @ batch.camera_crop[sample].T
        torch.testing.assert_close(flat[:, :2] / flat[:, 2:], targets.joints_crop[sample][valid], atol=1e-2, rtol=1e-4)


def test_batches_have_the_types_of_a_loader_and_finite_pictures(batches):
    batch = batches.batch(0, torch.arange(5))
    assert batch.image.shape == (5, 3, SIZE, SIZE) and batch.image.dtype == torch.float32
    assert batch.image.isfinite().all() and 0 <= batch.image.min() and batch.image.max() <= 1
    assert (batch.image.flatten(1).std(dim=1) > 0.02).all()
    assert batch.targets.vertices.shape == (5, 2, 778, 3) and batch.fault.eq(0).all()
    absent = batch.targets.vertices_valid == 0
    assert absent.any() and (batch.targets.vertices[absent] == 0).all() and (batch.targets.wrist[absent] == 0).all()


def test_a_batch_rendered_in_parts_is_the_batch_rendered_at_once(batches):
    indices = torch.arange(9)                                           # one more than a part
    together, at_once = batches.batch(1, indices), batches.part(1, indices)
    assert (together.image - at_once.image).abs().mean() < 1e-3         # sums may round otherwise
    torch.testing.assert_close(together.targets.vertices, at_once.targets.vertices)
    assert together.index.tolist() == list(range(9))


def test_a_picture_does_not_depend_on_its_neighbours(batches):
    alone, among = batches.batch(1, torch.tensor([4])), batches.batch(1, torch.arange(6))
    assert (alone.image[0] - among.image[4]).abs().mean() < 1e-3        # sums may round otherwise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_renders_what_the_cpu_renders(batches, hands):
    device = torch.device("cuda")
    bank = type(batches.bank)(*(values.to(device) for values in batches.bank))
    on_gpu = RenderedBatches(bank, load_assets(hands.surface, hands.model.template[Hand.RIGHT].numpy(), device),
                             size=SIZE, box_ratio=0.8, seed=5, rows=batches.rows.to(device))
    there, here = on_gpu.batch(0, torch.arange(6, device=device)), batches.batch(0, torch.arange(6))
    assert (there.image.cpu() - here.image).abs().mean() < 4e-3         # sums round otherwise
    torch.testing.assert_close(there.targets.joints_crop.cpu(), here.targets.joints_crop, atol=0.05, rtol=1e-3)


# ---------------------------------------------------------------- measuring spectra

def test_the_spectrum_of_noise_is_what_it_was_made_with():
    rng = np.random.default_rng(0)
    white = np.mean([power_spectrum(rng.normal(0, 1, (128, 128))) for _ in range(20)], axis=0)
    assert np.abs(white).max() < 0.2
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)) + 1e-9
    natural = [np.fft.ifft2(np.fft.fft2(rng.normal(0, 1, (128, 128))) / np.maximum(frequency, 1 / 128)).real
               for _ in range(20)]
    curve = np.mean([power_spectrum(picture) for picture in natural], axis=0)
    slope = np.polyfit(np.log10(band_centers()[3:]), curve[3:], 1)[0]
    assert slope == pytest.approx(-2, abs=0.25)


def test_agreement_counts_the_bands_inside_the_spread():
    real = np.array([[0.0, -1.0, -2.0, -3.0], [0.0, -1.5, -2.5, -4.0]])
    assert agreement(np.array([0.0, -1.2, -2.0, -3.5]), real) == (1.0, 0.0)
    inside, beyond = agreement(np.array([0.0, -1.2, -1.5, -4.75]), real)
    assert inside == 0.5 and beyond == pytest.approx(0.75)

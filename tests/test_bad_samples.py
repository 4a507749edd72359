"""A bad sample in training contributes exactly nothing, is counted and named, and too many of them stop the run."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_augment import make_record
from test_checks import ManyFrames, picture, save_bomb, save_cut, save_flat
from tiny_lgnet import SIZE as LGNET_SIZE
from tiny_lgnet import tiny_lgnet
from torch import Tensor
from torch.utils.data import default_collate
from toy_training import CPU, SIZE, ToyHands, resumed, stop_after, toy_dataset, toy_loss, toy_trainer

import main.engine.bad_samples as bad_samples_module
from common.errors import UserError
from common.geometry import project
from common.types import Sample, TwoHandBatch, map_tensors
from data.augment import AugmentConfig, empty_sample
from data.checks import Reason
from data.dataset import EpochSampler, TwoHandDataset
from data.schema import Record
from main.engine.bad_samples import BadSamples
from main.engine.batches import Batches, SamplesOnDisk, TrainingBatch, batches, build_loader, on_device, predict
from main.engine.processes.launch import Process
from main.engine.run.snapshots import load_latest, snapshots_in
from main.engine.trainer import Trainer

BAD = 3     # which of the toy set's six samples is spoiled


@pytest.fixture(scope="module")
def clean_root(tmp_path_factory, hand_model) -> Path:
    root = tmp_path_factory.mktemp("clean") / "data"
    toy_dataset(root, hand_model)
    return root


@pytest.fixture
def spoil(clean_root, hand_model, tmp_path) -> Callable[..., TwoHandDataset]:
    """The toy set with the pictures of some samples replaced by text."""
    def spoiled(*indices: int) -> TwoHandDataset:
        shutil.copytree(clean_root, tmp_path / "data")
        dataset = toy_dataset(tmp_path / "data", hand_model)
        for index in indices:
            Path(dataset.reader.describe(index)["path"]).write_text("no picture")
        return dataset

    return spoiled


def leaves(batch: TwoHandBatch | Sample) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(batch)


def load(dataset: TwoHandDataset, indices: list[int], workers: int = 0) -> TrainingBatch:
    """One training batch of these samples in epoch 5."""
    class Chosen(EpochSampler):
        def __iter__(self):
            return iter([(5, index) for index in indices])

    return next(iter(batches_of(dataset, Chosen(len(indices)), len(indices), workers)))


def batches_of(dataset: TwoHandDataset, sampler: EpochSampler, batch_size: int, workers: int = 0) -> Batches:
    samples = SamplesOnDisk(dataset, workers=workers, max_bad_fraction=1.0)
    return samples.batches(sampler, batch_size=batch_size, device=CPU.device, drop_last=False)


# ---------------------------------------------------------------- the sample

def test_a_bad_sample_is_black_annotates_nothing_and_says_why(spoil):
    dataset = spoil(BAD)
    sample = dataset[0, BAD]
    assert sample.fault == Reason.IMAGE_DAMAGED.code and sample.index == BAD
    assert not sample.pixels.any() and not sample.gain.any()
    assert not any(value.any() for name, value in sample.targets._asdict().items() if name.endswith("_valid"))
    assert all(leaf.isfinite().all() for leaf in leaves(sample))
    assert project(sample.targets.wrist, sample.camera_crop).isfinite().all()
    assert [int(dataset[0, index].fault) for index in range(6) if index != BAD] == [0] * 5


def test_a_bad_sample_has_the_shapes_and_types_of_a_good_one(spoil):
    dataset = spoil(BAD)
    for bad, good in zip(leaves(dataset[0, BAD]), leaves(dataset[0, 0]), strict=True):
        assert (bad.shape, bad.dtype) == (good.shape, good.dtype)


def test_any_number_of_loader_processes_gives_the_same_stream_with_bad_samples_in_it(spoil):
    dataset = spoil(1, 4)
    streams = []
    for workers in (0, 1, 2):
        loader = build_loader(dataset, EpochSampler(6, seed=3), batch_size=2, workers=workers, device=CPU.device,
                              drop_last=False)
        epochs = []
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            epochs += [leaf for batch in batches(loader, CPU.device) for leaf in leaves(batch)]
        streams.append(epochs)
    for other in streams[1:]:
        assert all(torch.equal(a, b) for a, b in zip(streams[0], other, strict=True))
    assert not torch.equal(streams[0][0], streams[0][len(streams[0]) // 2])


def test_reading_changes_nothing(hand_model, tmp_path):
    """Twice the same sample, from a record that stays as it was."""
    picture().save(tmp_path / "a.png")
    record = make_record(hand_model)._replace(image_path=tmp_path / "a.png")
    before = [array.copy() for array in record[2:]]
    ranges = AugmentConfig(scale=0.2, rotation=30, rotation_probability=1, flip_probability=1, color=0.2)
    dataset = TwoHandDataset(ManyFrames([record]), size=SIZE, box_ratio=0.8, augment=ranges)
    first, second = dataset[7, 0], dataset[7, 0]
    assert all(torch.equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(record[2:], before, strict=True))


# ---------------------------------------------------------------- the step

def gradients_of(model: torch.nn.Module, loss: torch.nn.Module, batch: TwoHandBatch) -> dict[str, Tensor]:
    """Loss terms, gradients and buffers after one training step's backward pass."""
    torch.manual_seed(1)    # dropout
    terms = loss(predict(model, batch), batch.targets)
    terms["total"].backward()
    gradients = {f"d {name}": parameter.grad.clone() for name, parameter in model.named_parameters()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    model.zero_grad(set_to_none=True)
    return {name: term.detach() for name, term in terms.items()} | gradients | buffers


def toy_step(hand_model, batch: TwoHandBatch) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return gradients_of(ToyHands().train(), toy_loss(hand_model), batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_with_a_bad_sample_trains_as_if_the_sample_had_never_been_in_it(
        spoil, clean_root, hand_model, workers):
    """Same loss terms, gradients and statistics of batch normalisation, to the bit."""
    with_bad = load(spoil(BAD), [0, BAD, 5, 1], workers)
    without = load(toy_dataset(clean_root, hand_model), [0, 5, 1])
    assert with_bad.faults == {BAD: Reason.IMAGE_DAMAGED.code} and not with_bad.is_blank
    assert without.faults == {}
    torch.testing.assert_close(toy_step(hand_model, with_bad.batch), toy_step(hand_model, without.batch),
                               rtol=0, atol=0)


def test_masks_alone_would_not_be_enough(spoil, hand_model):
    """The black picture left in the batch reaches the statistics, and through them every gradient."""
    dataset = spoil(BAD)
    left_in = on_device(default_collate([dataset[5, index] for index in (0, BAD, 5, 1)]), CPU.device)
    taken_out = load(dataset, [0, BAD, 5, 1]).batch
    one, other = toy_step(hand_model, left_in), toy_step(hand_model, taken_out)
    assert not torch.equal(one["norm.running_mean"], other["norm.running_mean"])
    assert not torch.equal(one["d heads.rough.weight"], other["d heads.rough.weight"])


@pytest.mark.parametrize(("indices", "spoiled", "blank"), [
    ([0, 1, 2, 3], [1, 2, 3], True),        # one usable sample has no statistics
    ([0, 1, 2, 3], [2, 3], False),
    ([0], [], False),                       # batches of one are the user's own choice
    ([0], [0], True),
])
def test_a_batch_is_blank_when_fewer_than_two_samples_are_usable(spoil, indices, spoiled, blank):
    batch, faults, is_blank = load(spoil(*spoiled), indices)
    assert (is_blank, set(faults)) == (blank, set(spoiled))
    assert set(batch.index.tolist()) == set(spoiled if blank else set(indices) - set(spoiled))


def test_a_blank_batch_moves_nothing_in_lgnet(hand_model):
    model = tiny_lgnet(hand_model)
    before = {name: value.clone() for name, value in model.named_buffers()}
    batch = on_device(default_collate([empty_sample(index, 1, LGNET_SIZE) for index in range(2)]), CPU.device)
    loss = toy_loss(hand_model)
    loss.input_size = LGNET_SIZE
    found = gradients_of(model, loss, batch)
    assert all(not value.any() for name, value in found.items() if name not in before)
    assert len(found) > len(before) + len(list(model.parameters()))
    assert all(torch.equal(found[name], value) for name, value in before.items())


def test_a_run_over_a_blank_batch_counts_the_step_and_keeps_the_statistics(spoil, tmp_path, monkeypatch):
    """Six samples of which four are bad, in batches of two: some batches are blank in every order."""
    dataset = spoil(0, 1, 2, 3)
    seen = []

    def spy(trainer, batch, share, original=Trainer.backward):
        result = original(trainer, batch, share)
        seen.append((bool(batch.fault.any()), result["loss/total"].item(), int(trainer.model.norm.num_batches_tracked)))
        return result

    monkeypatch.setattr(Trainer, "backward", spy)
    trainer = toy_trainer(dataset, tmp_path, max_bad_fraction=1.0)
    assert trainer.fit() == 0 and trainer.progress.step == len(seen) == 9
    blank = [step for step in seen if step[0]]
    assert blank and all(total == 0.0 for _, total, _ in blank)
    assert seen[-1][2] == len(seen) - len(blank)
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


# ---------------------------------------------------------------- the run

def test_bad_samples_are_named_once_and_counted_by_reason(spoil, tmp_path, caplog):
    dataset = spoil(1, 4)
    Path(dataset.reader.describe(4)["path"]).unlink()
    trainer = toy_trainer(dataset, tmp_path, max_bad_fraction=0.5)
    with caplog.at_level("INFO"):
        assert trainer.fit() == 0
    named = [record.getMessage() for record in caplog.records if "is left out" in record.getMessage()]
    assert sorted(named) == sorted(f"{dataset.reader.describe(index)['path']} is left out: {reason}."
                                   for index, reason in ((1, "image damaged"), (4, "image missing")))
    assert trainer.bad.reasons() == {"image damaged": 1, "image missing": 1}
    assert "2 of 6 training samples cannot be used so far" in caplog.text


# A loader process takes torch five seconds to end when the loop it feeds is left early.
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_too_many_bad_samples_stop_the_run_with_their_paths(spoil, tmp_path, workers):
    dataset = spoil(BAD)
    trainer = toy_trainer(dataset, tmp_path, workers=workers)
    with pytest.raises(UserError) as caught:
        trainer.fit()
    text = str(caught.value)
    assert caught.value.exit_code == 2 and "\n" not in text
    assert text.startswith("1 of 6 training samples cannot be used so far: 1 image damaged; that is 16.67%")
    assert dataset.reader.describe(BAD)["path"] in text and "data.max_bad_fraction" in text
    assert snapshots_in(tmp_path / "model_dump") == []


class Named:
    """A reader of which only the names matter."""

    def describe(self, index: int) -> dict[str, str]:
        return {"path": f"picture{index:04d}.jpg"}


@pytest.mark.parametrize(("bad", "total", "fraction", "stops"), [
    (1, 1000, 0.001, False), (2, 1000, 0.001, True),        # more than 0.1 %
    (36, 36_635, 0.001, False), (37, 36_635, 0.001, True),
    (1, 500, 0.001, True), (1, 500, 0.002, False),          # a small set: one sample is more than 0.1 % of it
    (500, 500, 1.0, False), (1, 500, 0.0, True),
])
def test_the_share_of_the_whole_set_decides(bad: int, total: int, fraction: float, stops: bool):
    counted = BadSamples(Named(), CPU)
    counted.add(dict.fromkeys(range(bad), Reason.IMAGE_BLACK.code))
    if not stops:
        counted.refuse_more_than(fraction, total)
        return
    with pytest.raises(UserError) as caught:
        counted.refuse_more_than(fraction, total)
    assert str(caught.value).count("picture") == min(bad, bad_samples_module.MAX_NAMED) == min(bad, 10)


def test_a_sample_that_is_met_again_beside_a_new_one_is_not_named_again(caplog):
    counted = BadSamples(Named(), CPU)
    counted.add({1: Reason.UNIT.code})
    counted.add({1: Reason.UNIT.code, 2: Reason.IMAGE_MISSING.code})
    assert [record.getMessage() for record in caplog.records] == [
        "picture0001.jpg is left out: wrong unit.", "picture0002.jpg is left out: image missing."]


def test_all_processes_count_what_any_of_them_met():
    """A sample that pads the epoch of two processes is met twice and counted once."""
    class Two(Process):
        def gather(self, item):
            return [item, {7: Reason.IMAGE_MISSING.code, 2: Reason.UNIT.code}]

    counted = BadSamples(Named(), Two(torch.device("cpu"), 0, 2))
    counted.add({2: Reason.UNIT.code, 5: Reason.UNIT.code})
    assert len(counted) == 3 and counted.reasons() == {"wrong unit": 2, "image missing": 1}
    assert counted.has_new({9: 1}) and not counted.has_new({7: Reason.IMAGE_MISSING.code})


@pytest.mark.parametrize("stop_at", [2, 4])
def test_a_run_with_bad_samples_continues_to_the_same_bits(spoil, tmp_path, stop_at: int):
    dataset = spoil(0, BAD)
    assert toy_trainer(dataset, tmp_path / "whole", max_bad_fraction=1.0).fit() == 0

    assert toy_trainer(dataset, tmp_path / "cut", max_bad_fraction=1.0, on_step=stop_after(stop_at)).fit() == 143
    assert resumed(dataset, tmp_path / "cut", max_bad_fraction=1.0, workers=1).fit() == 0
    whole, cut = (load_latest(tmp_path / name / "model_dump")[0] for name in ("whole", "cut"))
    torch.testing.assert_close(cut.model, whole.model, rtol=0, atol=0)
    torch.testing.assert_close(cut.optimizer, whole.optimizer, rtol=0, atol=0)


def _one_of_two(rank: int, store: str, root: Path, output: Path, fraction: float) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    from common.mano.load import load_hand_model

    dataset = toy_dataset(root, load_hand_model("builtin"))
    torch.manual_seed(0)
    process = Process(torch.device("cpu"), rank, 2)
    trainer = toy_trainer(dataset, output, model=ToyHands(dropout=0.0, normalized=False), process=process,
                          batch_size=1, epochs=2, max_bad_fraction=fraction)
    try:
        code = int(trainer.fit())
    except UserError as error:
        code = error.exit_code
    torch.save({"code": code, "bad": trainer.bad.faults, "step": trainer.progress.step,
                "model": trainer.model.state_dict()}, output / f"rank{rank}.pt")
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize(("fraction", "code", "steps"), [(0.2, 0, 6), (0.001, 2, None)])
def test_two_processes_take_every_step_together_whichever_of_them_meets_the_bad_sample(
        spoil, tmp_path, fraction, code, steps):
    """In batches of one, the process that meets it has a blank batch; the other has not."""
    spoil(BAD)
    (tmp_path / "run").mkdir()
    torch.multiprocessing.start_processes(
        _one_of_two, (str(tmp_path / "store"), tmp_path / "data", tmp_path / "run", fraction), nprocs=2,
        start_method="spawn")
    ends = [torch.load(tmp_path / "run" / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert [end["code"] for end in ends] == [code] * 2
    assert [end["bad"] for end in ends] == [{BAD: Reason.IMAGE_DAMAGED.code}] * 2
    assert ends[0]["step"] == ends[1]["step"] and steps in (None, ends[0]["step"])
    torch.testing.assert_close(ends[0]["model"], ends[1]["model"], rtol=0, atol=0)


# ---------------------------------------------------------------- two hundred files

FILE_SIZE = (84, 128)


def small(seed: int) -> Image.Image:
    return picture(seed, *FILE_SIZE)


def save_as(kind: str, mode: str = "RGB", **options) -> Callable[[Path, int], None]:
    def save(path: Path, seed: int) -> None:
        small(seed).convert(mode).save(path, kind, **options)

    return save


def save_rotated(path: Path, seed: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1 + seed % 8
    small(seed).save(path, "JPEG", exif=exif)


def save_sixteen_bits(path: Path, seed: int) -> None:
    Image.fromarray(np.asarray(small(seed).convert("L")).astype(np.uint16) * 257).save(path, "PNG")


def save_animation(path: Path, seed: int) -> None:
    small(seed).save(path, "GIF", save_all=True, append_images=[small(seed + 1), small(seed + 2)])


def save_flipped(path: Path, seed: int) -> None:
    """A JPEG of which some bytes are wrong."""
    buffer, rng = io.BytesIO(), np.random.default_rng(seed)
    small(seed).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    for place in rng.integers(2, len(data), 4):
        data[place] = rng.integers(256)
    path.write_bytes(bytes(data))


# What is saved, and whether it can be used: None where either will do.
FILES: dict[str, tuple[Callable[[Path, int], object], bool | None]] = {
    "JPEG": (save_as("JPEG", quality=85), True),
    "progressive JPEG": (save_as("JPEG", progressive=True), True),
    "grey JPEG": (save_as("JPEG", "L"), True),
    "CMYK JPEG": (save_as("JPEG", "CMYK"), True),
    "rotated JPEG": (save_rotated, True),
    "PNG with alpha": (save_as("PNG", "RGBA"), True),
    "palette PNG": (save_as("PNG", "P"), True),
    "16-bit PNG": (save_sixteen_bits, True),
    "animation": (save_animation, True),
    "TIFF": (save_as("TIFF"), True),
    "nothing": (lambda path, seed: None, False),
    "empty": (lambda path, seed: path.write_bytes(b""), False),
    "text": (lambda path, seed: path.write_text("no picture " * seed), False),
    "noise": (lambda path, seed: path.write_bytes(np.random.default_rng(seed).bytes(3000)), False),
    "cut JPEG": (lambda path, seed: save_cut(path, "JPEG", 0.05 + 0.09 * seed, FILE_SIZE), False),
    "cut PNG": (lambda path, seed: save_cut(path, "PNG", 0.05 + 0.09 * seed, FILE_SIZE), False),
    "wrong bytes": (save_flipped, None),
    "bomb": (lambda path, seed: save_bomb(path), False),
    "other size": (lambda path, seed: picture(seed, 1, 10_000 - seed).save(path, "PNG"), False),
    "link to itself": (lambda path, seed: path.symlink_to(path), False),
    "black": (lambda path, seed: save_flat(path, 0.5 * seed, 1.5, FILE_SIZE), False),
}
NAMES = ("picture {}.jpg", "Bild_ä_手_{}.png", "{}.JPG", "no suffix {}")
SEEDS = 10


@pytest.fixture(scope="module")
def fuzzed(hand_model, tmp_path_factory) -> tuple[list[str], list[Record]]:
    """The kind and the record of two hundred and ten generated files."""
    folder, record = tmp_path_factory.mktemp("files"), make_record(hand_model)
    shrink = np.diag([0.25, 0.25, 1.0])
    record = record._replace(image_size=FILE_SIZE, camera=shrink @ record.camera, box_px=record.box_px / 4)
    kinds, records = [], []
    for number, kind in enumerate(FILES):
        for seed in range(SEEDS):
            path = folder / str(number) / NAMES[seed % len(NAMES)].format(seed)
            path.parent.mkdir(exist_ok=True)
            FILES[kind][0](path, seed)
            kinds.append(kind)
            records.append(record._replace(image_path=path))
    return kinds, records


def peak_growth_mb(function: Callable[[], None]) -> float:
    """How far the peak of this process's memory rises above what it holds now."""
    def status(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")   # forget earlier peaks
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def test_two_hundred_files_give_a_sample_or_a_reason_each(fuzzed):
    kinds, records = fuzzed
    dataset = TwoHandDataset(ManyFrames(records), size=SIZE, box_ratio=0.8)
    samples = []
    growth = peak_growth_mb(lambda: samples.extend(dataset[0, index] for index in range(len(records))))
    assert len(samples) == len(FILES) * SEEDS >= 200
    for kind, sample in zip(kinds, samples, strict=True):
        is_usable = sample.fault == 0
        assert FILES[kind][1] in (None, is_usable), kind
        assert bool(sample.pixels.any()) == bool(sample.targets.joints_valid.all()) == is_usable
        assert is_usable or "image" in Reason.from_code(int(sample.fault))
    reasons = {Reason.from_code(int(sample.fault)) for sample in samples if sample.fault > 0}
    assert len(reasons) == 5
    assert growth < 500


def test_training_over_two_hundred_files_counts_each_bad_one(fuzzed):
    kinds, records = fuzzed
    dataset = TwoHandDataset(ManyFrames(records), size=SIZE, box_ratio=0.8)
    faults, used = {}, []
    for batch, found, is_blank in batches_of(dataset, EpochSampler(len(dataset), seed=1), batch_size=16):
        faults |= found
        used += [] if is_blank else batch.index.tolist()
    assert sorted([*faults, *used]) == list(range(len(records)))
    expected = [index for index, kind in enumerate(kinds) if FILES[kind][1] is False]
    assert set(expected) <= set(faults) <= {*expected, *(i for i, kind in enumerate(kinds) if kind == "wrong bytes")}


def test_what_stands_under_a_mask_of_an_empty_sample_is_never_seen(hand_model):
    """NaN in place of everything that is masked out changes no term of the loss and no gradient."""
    batch = on_device(default_collate([empty_sample(index, 1, SIZE) for index in range(2)]), CPU.device)
    masks = {name: value for name, value in batch.targets._asdict().items() if name.endswith("_valid")}
    unknown = map_tensors(lambda value: torch.full_like(value, torch.nan), batch.targets)._replace(**masks)
    found = toy_step(hand_model, batch._replace(targets=unknown))
    assert found["total"] == 0 and not any(value.any() for name, value in found.items() if name.startswith("d "))

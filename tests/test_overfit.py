"""The whole path learns: eight rendered pictures, by heart."""


import pytest
import torch
from torch.utils.data import default_collate

from common.nets.zoo import build_model
from common.score.metrics import PROTOCOLS, PredictedHands, sample_errors
from data import build_reader
from data.dataset import TwoHandDataset
from data.synthetic.on_disk.generate import generate
from data.synthetic.on_disk.plan import Settings
from main.build import build_loss
from main.config import load_config
from main.engine.batches import on_device

STEPS = 400


@pytest.mark.slow
def test_eight_fixed_samples_are_learned_to_less_than_five_millimetres(hand_model, tmp_path):
    generate(tmp_path, Settings(frames=12, seed=0, interacting=1.0), workers=1)
    reader = build_reader("InterHand26M", root=tmp_path, split="train", hand_model=hand_model,
                          filter="ih_hm", box_source="vertices")
    dataset = TwoHandDataset(reader, size=64, box_ratio=0.8)
    batch = on_device(default_collate([dataset[0, index] for index in range(8)]), torch.device("cpu"))

    torch.manual_seed(0)
    config = load_config("quickstart", ["model.input_size=64"])
    model, loss = build_model(config.model, hand_model), build_loss(config, hand_model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model(batch.image), batch.targets)["total"].backward()
        optimizer.step()
        schedule.step()

    with torch.no_grad():
        final = model.eval()(batch.image).final
    errors = sample_errors(PROTOCOLS["lgnet"], PredictedHands(final.vertices, final.joints, final.relative),
                           batch.targets, hand_model.regressor)
    assert errors.joints.mean() < 5.0

"""From a configuration to the parts that training, testing and the demo share."""

import logging
from dataclasses import asdict, replace

import torch
from torch import Tensor

from common.errors import UserError
from common.files import ROOT
from common.losses import TwoHandLoss
from common.mano.load import load_hand_model
from common.mano.model import HandModel
from common.nets.lgnet import LGNet, build_lgnet
from data import build_reader
from data.augment import AugmentRanges
from data.dataset import TwoHandDataset
from data.schema import Reader
from data.subset import EvenSubset, JoinedReader
from data.synthetic.batches import RenderedBatches
from main.config import Config
from main.engine.run.snapshots import load_trained, load_weights

log = logging.getLogger(__name__)


def configured_hand_model(config: Config) -> HandModel:
    """The hand model that the configuration names."""
    return load_hand_model(config.hand_model.name, config.hand_model.path)


def configured_dataset(config: Config, hand_model: HandModel, name: str, split: str, *,
                       augmented: bool) -> TwoHandDataset:
    """One split of the dataset `name`; UserError if it was made with another hand model."""
    return _dataset(config, _reader(config, hand_model, name, split, config.data.root), augmented=augmented)


def training_dataset(config: Config, hand_model: HandModel) -> TwoHandDataset:
    """What is trained on, augmented: the split `data.train_split` of all folders of the trainset."""
    return _dataset(config, training_reader(config, hand_model), augmented=True)


def training_reader(config: Config, hand_model: HandModel) -> Reader:
    """The split `data.train_split` of all folders of the trainset."""
    data = config.data
    readers = [_reader(config, hand_model, data.trainset, data.train_split, root)
               for root in (data.root, *data.more_roots)]
    return JoinedReader(readers) if data.more_roots else readers[0]


def _reader(config: Config, hand_model: HandModel, name: str, split: str, root: str) -> Reader:
    data = config.data
    return build_reader(name, root=ROOT / root, split=split, hand_model=hand_model, filter=data.filter,
                        box_source=data.box_source)


def _dataset(config: Config, reader: Reader, *, augmented: bool) -> TwoHandDataset:
    data = config.data
    log.info(reader.summary)
    augment = AugmentRanges(**asdict(data.augment)) if augmented else None
    return TwoHandDataset(reader, size=config.model.input_size, box_ratio=data.box_ratio, augment=augment,
                          seed=config.train.seed)


def rendered_batches(config: Config, dataset: TwoHandDataset, device: torch.device) -> RenderedBatches | None:
    """What draws the training samples anew on the device; None if training reads the dataset's files."""
    data = config.data
    if not data.render_anew:
        return None
    return RenderedBatches.of_set(dataset.reader, ROOT / data.root, data.train_split, size=config.model.input_size,
                                  box_ratio=data.box_ratio, seed=config.train.seed, device=device)


def validation_dataset(config: Config, hand_model: HandModel) -> TwoHandDataset:
    """What training is scored on as it goes: at most `data.val_samples` of the split `data.val_split`."""
    try:
        dataset = configured_dataset(config, hand_model, config.data.trainset, config.data.val_split, augmented=False)
    except UserError as error:
        raise UserError(f"There is nothing to validate on. {error.message}",
                        "Choose another split with --set data.val_split=NAME, or switch validation off with --set "
                        "train.validate_every=0.", error.exit_code) from None
    dataset.reader = EvenSubset(dataset.reader, config.data.val_samples)
    return dataset


def configured_loss(config: Config, hand_model: HandModel) -> TwoHandLoss:
    """The training loss with the configured weights."""
    return TwoHandLoss(hand_model.faces, input_size=config.model.input_size, depth_range=config.data.depth_range,
                       refine_stage=config.model.refine_stage, **asdict(config.loss))


def configured_model(config: Config, hand_model: HandModel) -> LGNet:
    """The model (`common.nets.lgnet.LGNet`) before training."""
    pretrained = config.model.pretrained
    if pretrained not in ("", "imagenet"):
        pretrained = str(ROOT / pretrained)
    return build_lgnet(hand_model, depth_range=config.data.depth_range,
                       **asdict(replace(config.model, pretrained=pretrained)))


def trained_model(config: Config, hand_model: HandModel, weights: dict[str, Tensor], where: str) -> LGNet:
    """The model with the weights of a snapshot; UserError if they do not fit."""
    model = _fresh_model(config, hand_model)
    load_weights(model, weights, where)
    return model


def starting_model(config: Config, hand_model: HandModel) -> LGNet:
    """The model at the beginning of training: `configured_model`, or with the weights of `train.start_from`. Parts that
    the file lacks, such as the refine stage of a model trained without it, are new; parts that only the file has are
    left out."""
    if not config.train.start_from:
        return configured_model(config, hand_model)
    path = ROOT / config.train.start_from
    trained = load_trained(path)
    model = _fresh_model(config, hand_model)
    own, given = _parts(model.state_dict()), _parts(trained.model)
    new = {name: value for name, value in model.state_dict().items() if _part(name) not in given}
    kept = {name: value for name, value in trained.model.items() if _part(name) in own}
    load_weights(model, new | kept, str(path))
    changed = [f"; {what}: {', '.join(sorted(parts))}"
               for what, parts in (("new", own - given), ("left out", given - own)) if parts]
    log.info("Starts from %s%s.", path, "".join(changed))
    if trained.hand_model != hand_model.identity:
        log.warning("%s was trained with another hand model, %s.", path, trained.hand_model["name"])
    return model


def _parts(weights: dict[str, Tensor]) -> set[str]:
    return {_part(name) for name in weights}


def _part(name: str) -> str:
    """The part of the model that a weight belongs to."""
    return name.partition(".")[0]


def _fresh_model(config: Config, hand_model: HandModel) -> LGNet:
    """The model whose weights will be replaced: none are fetched, and nothing is said about what it starts from."""
    backbone_log = logging.getLogger("common.nets.resnet")
    backbone_log.disabled = True
    model = configured_model(replace(config, model=replace(config.model, pretrained="")), hand_model)
    backbone_log.disabled = False
    return model

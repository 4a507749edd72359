"""From the sections of a configuration to the parts that they describe."""

import logging
from functools import partial

import torch
from torch import Tensor, nn

from common.errors import EXIT_USER_ERROR, UserError
from common.files import from_repository
from common.losses import TwoHandLoss
from common.mano.load import load_hand_model
from common.mano.model import HandModel
from common.nets.pretrained import IMAGENET, load_pretrained
from common.nets.zoo import ModelConfig, build_model
from common.weights import load_shared_parts, load_weights
from data import build_reader
from data.dataset import TwoHandDataset
from data.schema import Reader
from data.subset import EvenSubset, JoinedReader
from main.config import Config, HandModelConfig
from main.engine.batches import RenderedSamples, SamplesOnDisk, TrainingSamples, predict
from main.engine.evaluator import Evaluator
from main.engine.processes.launch import Process
from main.engine.run.snapshots import load_trained
from main.engine.trainer import Validation

log = logging.getLogger(__name__)


def build_hand_model(config: HandModelConfig) -> HandModel:
    """The hand model that the configuration names."""
    return load_hand_model(config.name, config.path)


def build_loss(config: Config, hand_model: HandModel) -> TwoHandLoss:
    """The training loss with the configured weights."""
    return TwoHandLoss(config.loss, hand_model.faces, input_size=config.model.input_size,
                       depth_range=config.model.depth_range)


# ---------------------------------------------------------------- data

def build_dataset(config: Config, hand_model: HandModel, name: str, split: str) -> TwoHandDataset:
    """One split of the dataset `name`, not augmented; UserError if it was made with another hand model."""
    return _dataset(config, _reader(config, hand_model, name, split, config.data.root), augmented=False)


def build_training_samples(config: Config, hand_model: HandModel, device: torch.device) -> TrainingSamples:
    """What is trained on: the split `data.train_split` of all folders of the trainset, from files or drawn anew."""
    data, reader = config.data, build_training_reader(config, hand_model)
    dataset = _dataset(config, reader, augmented=True)
    if not data.render_anew:
        return SamplesOnDisk(dataset, workers=data.workers, max_bad_fraction=data.max_bad_fraction)
    from data.synthetic.batches import RenderedBatches  # imported here: training from files needs no renderer
    return RenderedSamples(reader, RenderedBatches.of_set(
        reader, from_repository(data.root), data.train_split, size=config.model.input_size, box_ratio=data.box_ratio,
        seed=config.train.seed, device=device))


def build_training_reader(config: Config, hand_model: HandModel) -> Reader:
    """The split `data.train_split` of all folders of the trainset."""
    data = config.data
    readers = [_reader(config, hand_model, data.trainset, data.train_split, root)
               for root in (data.root, *data.more_roots)]
    return JoinedReader(readers) if data.more_roots else readers[0]


def _reader(config: Config, hand_model: HandModel, name: str, split: str, root: str) -> Reader:
    data = config.data
    return build_reader(name, root=from_repository(root), split=split, hand_model=hand_model, filter=data.filter,
                        box_source=data.box_source)


def _dataset(config: Config, reader: Reader, *, augmented: bool) -> TwoHandDataset:
    log.info(reader.summary)
    return TwoHandDataset(reader, size=config.model.input_size, box_ratio=config.data.box_ratio,
                          augment=config.data.augment if augmented else None, seed=config.train.seed)


# ---------------------------------------------------------------- evaluation

def build_validation(config: Config, hand_model: HandModel, process: Process) -> Validation | None:
    """What scores a model in training: at most `data.val_samples` of the split `data.val_split`. None if training goes
    without."""
    if not config.train.validate_every:
        return None
    try:
        dataset = build_dataset(config, hand_model, config.data.trainset, config.data.val_split)
    except UserError as error:
        if error.exit_code != EXIT_USER_ERROR:
            raise
        raise UserError(f"There is nothing to validate on. {error.message}",
                        "Choose another split with --set data.val_split=NAME, or switch validation off with --set "
                        "train.validate_every=0.", error.exit_code) from None
    dataset.reader = EvenSubset(dataset.reader, config.data.val_samples)
    return lambda model, mean_joints: Evaluator(partial(predict, model), dataset, mean_joints, settings=config.test,
                                                workers=config.data.workers, process=process)


# ---------------------------------------------------------------- weights

def build_trained_model(config: ModelConfig, hand_model: HandModel, weights: dict[str, Tensor], where: str
                        ) -> nn.Module:
    """The model with the weights of the file `where`; UserError if they do not fit."""
    model = build_model(config, hand_model)
    load_weights(model, weights, where)
    return model


def load_initial_weights(model: nn.Module, config: Config, hand_model: HandModel) -> None:
    """Give a new run's model the weights that it starts from: `train.start_from`, or `model.pretrained` for its
    backbone; without either they stay random."""
    if config.train.start_from:
        _start_from(model, config.train.start_from, hand_model)
    elif not config.model.pretrained:
        log.info("%s starts from random weights.", config.model.name)
    else:
        backbone, pretrained = getattr(model, "backbone", None), config.model.pretrained
        if backbone is None:
            raise UserError(f"model.pretrained is '{pretrained}', but {config.model.name} has no backbone to fill.",
                            "Leave it empty.")
        load_pretrained(backbone, pretrained if pretrained in IMAGENET else str(from_repository(pretrained)))


def _start_from(model: nn.Module, start_from: str, hand_model: HandModel) -> None:
    """Parts that the file lacks, such as the refine stage of a model trained without it, stay as they are; parts that
    only the file has are left out."""
    path = from_repository(start_from)
    trained = load_trained(path)
    new, left_out = load_shared_parts(model, trained.model, str(path))
    changed = [f"; {what}: {', '.join(sorted(parts))}" for what, parts in (("new", new), ("left out", left_out))
               if parts]
    log.info("Starts from %s%s.", path, "".join(changed))
    if trained.hand_model != hand_model.identity:
        log.warning("%s was trained with another hand model, %s.", path, trained.hand_model["name"])

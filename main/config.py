"""The configuration: frozen dataclasses, filled from a YAML file and `--set a.b=c`.

A YAML file may start from another one with `base: lgnet.yaml` (relative to itself) and names only what differs.
Unknown keys and values of the wrong type are refused with the key, the value and the closest known key.
"""

import dataclasses
import difflib
import json
import os
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from common.errors import UserError
from common.losses import LossConfig
from common.nets.zoo import ModelConfig, fixes, upgraded
from common.score.metrics import protocol_named
from data.augment import AugmentConfig

CONFIG_DIR = Path(__file__).parent / "configs"
CompileMode = Literal["", "default", "reduce-overhead", "max-autotune"]


@dataclass(frozen=True)
class HandModelConfig:
    name: Literal["builtin", "mano"] = fixes("model", "builtin")
    path: str = ""                          # folder with MANO_RIGHT and MANO_LEFT; unused by the built-in hand


@dataclass(frozen=True)
class DataConfig:
    root: str = "data/InterHand26M/data"    # relative to the repository, or absolute
    more_roots: tuple[str, ...] = ()        # other folders of the trainset, trained on beside root
    trainset: str = fixes("score", "InterHand26M")          # a name in data.READERS
    testset: str = "InterHand26M"
    train_split: str = "train"
    val_split: str = fixes("score", "val")  # of the trainset; watched in training: see train.validate_every
    val_samples: int = fixes("score", 1000)  # of it at most, spread evenly
    test_split: str = "test"
    filter: Literal["ih_hm", "human", "all"] = fixes("score", "ih_hm")      # see data.schema.Filter
    box_source: Literal["vertices", "joints", "json"] = fixes("score", "vertices")
    box_ratio: float = 0.8                  # the hands fill this share of the crop
    render_anew: bool = False               # a rendered trainset only: draw its hands anew on the training device, in
                                            # every epoch with another camera, person and place, and no augmentation
    workers: int = 4                        # loader processes for each training process
    max_bad_fraction: float = 0.001         # of the training samples may be unusable before the run stops
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"data.max_bad_fraction is {self.max_bad_fraction}.", "It must lie between 0 and 1.")
        if self.val_samples < 1:
            raise UserError(f"data.val_samples is {self.val_samples}.",
                            "It must be at least 1; train.validate_every=0 switches validation off.")
        if self.render_anew and self.more_roots:
            raise UserError("data.render_anew=true draws the hands of one set, but data.more_roots names others.",
                            "Leave one of them out.")


@dataclass(frozen=True)
class TrainConfig:
    epochs: int = 30
    batch_size: int = 32                    # for each process
    lr: float = 1e-4
    lr_decay: Literal["drops", "cosine"] = "drops"
    lr_drops: tuple[int, ...] = (10, 15)    # drops: epochs at which lr is divided by 10. cosine: from lr to 0, unused
    start_from: str = ""                    # snapshot or weights that a new run goes on from, not model.pretrained
    warmup_steps: int = 0                   # linear rise of lr from 0
    max_grad_norm: float = 0.0              # 0: no clipping
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = 1                     # batches for each step, whose gradients are averaged: see Trainer
    compile: CompileMode = ""               # a mode of torch.compile; "" is eager
    channels_last: bool = False             # convolutions see maps as (H, W, C): often faster, other roundings
    seed: int = 0
    validate_every: int = 1                 # epochs; 0: never, and there is no best snapshot
    keep_snapshots: int = 3                 # the last k and the best stay on disk
    save_every: int = 0                     # steps inside an epoch; 0: only at its end
    log_every: int = 50                     # steps

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise UserError(f"train.lr is {self.lr}.", "It must be positive.")
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} is {getattr(self, name)}.", "It must be at least 1.")
        if self.keep_snapshots < 1 or self.log_every < 1:
            raise UserError(f"train.keep_snapshots is {self.keep_snapshots} and train.log_every {self.log_every}.",
                            "Both must be at least 1.")
        if self.validate_every < 0 or self.save_every < 0:
            raise UserError(f"train.validate_every is {self.validate_every} and train.save_every {self.save_every}.",
                            "Neither may be negative; 0 switches it off.")


@dataclass(frozen=True)
class TestConfig:
    batch_size: int = 32
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: CompileMode = ""
    channels_last: bool = False
    flip_test: bool = False                 # predict the mirrored image too, and average; see common.predict.flip
    protocol: str = fixes("score", "lgnet")  # whose numbers are printed and drawn; see common.score.metrics.PROTOCOLS
    pck_exclude_root: bool = False          # leave the aligned joint out of PCK and AUC
    pck_strict: bool = False                # PCK counts errors below the threshold, not those equal to it
    bins: tuple[float, ...] = ()            # edges for the asymmetry; empty: six bins with equally many samples

    def __post_init__(self) -> None:
        protocol_named(self.protocol)       # a mistake in it is told now and not after the first epoch
        rising = all(low < high for low, high in zip(self.bins, self.bins[1:], strict=False))
        if len(self.bins) == 1 or not rising:
            raise UserError(f"test.bins is {list(self.bins)}.", "It must be two or more edges in rising order.")


@dataclass(frozen=True)
class Config:
    hand_model: HandModelConfig = field(default_factory=HandModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)
    output: str = "output"                  # model_dump, log, result, vis; relative to the repository


def load_config(path: str | Path = "lgnet.yaml", overrides: list[str] | None = None) -> Config:
    """The configuration in a YAML file, changed by `a.b=c` overrides.

    path: a file, or the name of one in main/configs.
    """
    values = _read_yaml(_find(Path(path)))
    for override in overrides or []:
        _apply_override(values, override)
    return _build(Config, values, prefix="")


def changed_config(config: Config, overrides: list[str]) -> Config:
    """A configuration changed by `a.b=c` overrides."""
    values = config_to_dict(config)
    for override in overrides:
        _apply_override(values, override)
    return _build(Config, values, prefix="")


def mano_overrides(folder: str | None) -> list[str]:
    """The `a.b=c` overrides that `--mano FOLDER` stands for; the folder is relative to the working directory."""
    if folder is None:
        return []
    path = os.path.abspath(os.path.expanduser(folder))
    return ["hand_model.name=mano", f"hand_model.path={json.dumps(path)}"]     # quoted: a name such as 1e3 stays text


def config_from_dict(values: dict[str, Any]) -> Config:
    """A Config from plain nested values, as stored in a snapshot or file of weights, of this version or an earlier
    one."""
    return _build(Config, upgraded(values), prefix="")


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain nested values that `config_from_dict` reads back."""
    return dataclasses.asdict(config)


def changes(before: Config, after: Config) -> dict[str, str]:
    """Keys whose values differ, each with `old → new`."""
    old, new = _flat(config_to_dict(before)), _flat(config_to_dict(after))
    return {key: f"{old[key]} → {new[key]}" for key in new if old[key] != new[key]}


def keys_fixing(what: str, kind: type = Config, prefix: str = "") -> set[str]:
    """The keys marked `fixes(what, …)` where they are defined."""
    found = {f"{prefix}{key.name}" for key in dataclasses.fields(kind) if key.metadata.get("fixes") == what}
    for name, hint in typing.get_type_hints(kind).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found |= keys_fixing(what, hint, f"{prefix}{name}.")
    return found


def refuse_changes(before: Config, after: Config, where: str) -> None:
    """Raise UserError if `after` describes another model than `before`, that of the snapshot `where`."""
    fixed = keys_fixing("model")
    changed = [f"{key} {change}" for key, change in changes(before, after).items() if key in fixed]
    if changed:
        raise UserError(f"{where} fixes the model, but the configuration differs: {', '.join(changed)}.",
                        "Leave these as they are, or train a new model.")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _find(path: Path) -> Path:
    for candidate in (path, CONFIG_DIR / path, CONFIG_DIR / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(str(file.relative_to(CONFIG_DIR)) for file in CONFIG_DIR.rglob("*.yaml")))
    raise UserError(f"There is no config file '{path}'.", f"main/configs holds: {known}.")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}.") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__} at its top level.",
                        "It must hold keys such as 'train:'.")
    base = values.pop("base", None)
    return values if base is None else _merged(_read_yaml(_find(path.parent / str(base))), values)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both_nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both_nested else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set got '{override}'.", "Write it as key=value, for example --set train.lr=3e-4.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {override}: '{section}' is a value, not a section.")
    values[name] = value


def _build(kind: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"Config section '{prefix.rstrip('.')}' is {values!r}.", "It must hold keys.")
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"Did you mean '{prefix}{close[0]}'?" if close else f"Known keys: {', '.join(hints)}."
            raise UserError(f"Unknown config key '{prefix}{key}'.", hint)
    return kind(**{key: _coerce(hints[key], value, f"{prefix}{key}") for key, value in values.items()})


def _coerce(hint: Any, value: Any, key: str) -> Any:
    """`value` as the field's type; PyYAML reads 1e-4 as a string, so numbers are read from strings too."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{key}.")
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in options:
            return value
        raise UserError(f"Config key '{key}' is {value!r}.", f"It must be one of: {', '.join(options)}.")
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_coerce(options[0], item, key) for item in value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
            if hint is float or number.is_integer():
                return hint(number)
        except (TypeError, ValueError, OverflowError):
            pass
    if hint is str and (value is None or isinstance(value, (str, int, float))):
        return "" if value is None else str(value)
    name = "a list" if isinstance(hint, types.GenericAlias) else f"a value of type {hint.__name__}"
    raise UserError(f"Config key '{key}' is {value!r}.", f"It must be {name}.")

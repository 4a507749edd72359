"""The configuration: frozen dataclasses, filled from a YAML file and `--set a.b=c`.

A YAML file may start from another one with `base: lgnet.yaml` (relative to itself) and names only what differs.
Unknown keys, and values of another type or outside the range that stands at the key, are refused with the key, the
value and the remedy.

What is written is text, and the type of its key alone says how it is read: a text to the letter, a number as a decimal
one, a switch as true or false. Paths in a file are relative to the repository, typed ones to the working directory.
"""

import dataclasses
import difflib
import math
import os
import re
import typing
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from common.errors import UserError
from common.files import ROOT
from common.losses import LossConfig
from common.nets.zoo import ModelConfig, upgraded
from common.score.metrics import protocol_named
from common.settings import Count, CountOr0, FilePath, PathOr, Range, Share, fixes
from data.augment import AugmentConfig

CONFIG_DIR = Path(__file__).parent / "configs"
CompileMode = Literal["", "default", "reduce-overhead", "max-autotune"]


@dataclass(frozen=True)
class HandModelConfig:
    name: Literal["builtin", "mano"] = fixes("model", "builtin")
    path: FilePath = ""                     # folder with MANO_RIGHT and MANO_LEFT; unused by the built-in hand


@dataclass(frozen=True)
class DataConfig:
    root: FilePath = "data/InterHand26M/data"
    more_roots: tuple[FilePath, ...] = ()   # other folders of the trainset, trained on beside root
    trainset: str = fixes("score", "InterHand26M")          # a name in data.READERS
    testset: str = "InterHand26M"
    train_split: str = "train"
    val_split: str = fixes("score", "val")  # of the trainset; watched in training: see train.validate_every
    val_samples: Count = fixes("score", 1000)   # of it at most, spread evenly
    test_split: str = "test"
    filter: Literal["ih_hm", "human", "all"] = fixes("score", "ih_hm")      # see data.schema.Filter
    box_source: Literal["vertices", "joints", "json"] = fixes("score", "vertices")
    box_ratio: Annotated[float, Range(0.05, 2)] = 0.8       # the hands fill this share of the crop
    render_anew: bool = False               # a rendered trainset only: draw its hands anew on the training device, in
                                            # every epoch with another camera, person and place, and no augmentation
    workers: Annotated[int, Range(0, 1024)] = 4             # loader processes for each training process
    max_bad_fraction: Share = 0.001         # of the training samples may be unusable before the run stops
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.render_anew and self.more_roots:
            raise UserError("data.render_anew=true draws the hands of one set, but data.more_roots names others.",
                            "Leave one of them out.")


@dataclass(frozen=True)
class TrainConfig:
    epochs: Count = 30
    batch_size: Count = 32                  # for each process
    lr: Annotated[float, Range(1e-9, 10)] = 1e-4
    lr_decay: Literal["drops", "cosine"] = "drops"
    # "drops": epochs at which lr is divided by 10. "cosine", from lr to 0, does not use them.
    lr_drops: tuple[CountOr0, ...] = (10, 15)
    start_from: FilePath = ""               # snapshot or weights that a new run goes on from, not model.pretrained
    warmup_steps: CountOr0 = 0              # linear rise of lr from 0
    max_grad_norm: Annotated[float, Range(0, 1e9)] = 0.0    # 0: no clipping
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: Count = 1                   # batches for each step, whose gradients are averaged: see Trainer
    compile: CompileMode = ""               # a mode of torch.compile; "" is eager
    channels_last: bool = False             # convolutions see maps as (H, W, C): often faster, other roundings
    seed: Annotated[int, Range(0, 10**18)] = 0
    validate_every: CountOr0 = 1            # epochs; 0: never, and there is no best snapshot
    keep_snapshots: Count = 3               # the last k and the best stay on disk
    save_every: CountOr0 = 0                # steps inside an epoch; 0: only at its end
    log_every: Count = 50                   # steps


@dataclass(frozen=True)
class TestConfig:
    batch_size: Count = 32
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: CompileMode = ""
    channels_last: bool = False
    flip_test: bool = False                 # predict the mirrored image too, and average; see common.predict.flip
    protocol: str = fixes("score", "lgnet")  # whose numbers are printed and drawn; see common.score.metrics.PROTOCOLS
    pck_exclude_root: bool = False          # leave the aligned joint out of PCK and AUC
    pck_strict: bool = False                # PCK counts errors below the threshold, not those equal to it
    # Edges for the asymmetry; empty: six bins with equally many samples.
    bins: tuple[Annotated[float, Range(-1e9, 1e9)], ...] = ()

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
    output: FilePath = "output"             # model_dump, log, result, vis


def load_config(path: str | Path = "lgnet.yaml", overrides: list[str] | None = None) -> Config:
    """The configuration in a YAML file, changed by `a.b=c` overrides.

    path: a file, or the name of one in main/configs.
    """
    values = _read_yaml(_find(Path(os.path.expanduser(path))))
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
    """The `a.b=c` overrides that `--mano FOLDER` stands for."""
    return [] if folder is None else ["hand_model.name=mano", f"hand_model.path={folder}"]


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
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, Loader=yaml.BaseLoader)        # no value but text
        _refuse_doubled_keys(yaml.compose(text, Loader=yaml.BaseLoader), path)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}.") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__} at its top level.",
                        "It must hold keys such as 'train:'.")
    base = values.pop("base", None)
    return values if base is None else _merged(_read_yaml(_find(path.parent / os.path.expanduser(str(base)))), values)


def _refuse_doubled_keys(node: yaml.Node | None, path: Path) -> None:
    """Of two values of a key the one that was meant is not known; YAML's libraries take the last."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        for (key, value), before in zip(node.value, (keys[:number] for number in range(len(keys))), strict=True):
            if key.value in before:
                raise UserError(f"{path} has the key '{key.value}' twice, the second time in line "
                                f"{key.start_mark.line + 1}.", "Remove one of the two.")
            _refuse_doubled_keys(value, path)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both_nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both_nested else value
    return merged


class _Typed(str):
    """A value as it was typed after `--set`."""


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set got '{override}'.", "Write it as key=value, for example --set train.lr=3e-4.")
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {override}: '{section}' is a value, not a section.")
    values[name] = _Typed(text)


def _build(kind: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"Config section '{prefix.rstrip('.')}' is {values!r}.", "It must hold keys.")
    hints = typing.get_type_hints(kind, include_extras=True)
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"Did you mean '{prefix}{close[0]}'?" if close else f"Known keys: {', '.join(hints)}."
            raise UserError(f"Unknown config key '{prefix}{key}'.", hint)
    return kind(**{key: _coerce(hints[key], value, f"{prefix}{key}") for key, value in values.items()})


def _coerce(hint: Any, value: Any, key: str) -> Any:
    """`value` as the type of its key. It is text, or what an earlier configuration stored."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{key}.")
    if typing.get_origin(hint) is tuple:
        return tuple(_coerce(typing.get_args(hint)[0], item, key) for item in _items(value, key))
    if typing.get_origin(hint) is Literal:
        return _option(typing.get_args(hint), value, key)
    if hint is bool:
        return _switch(value, key)
    kind, limit = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint, None)
    return _text(limit, value, key) if kind is str else _number(kind, limit, value, key)


def _option(options: tuple[str, ...], value: Any, key: str) -> str:
    if value not in options:
        raise UserError(f"Config key '{key}' is {value!r}.", f"It must be one of: {', '.join(options)}.")
    return str(value)


def _switch(value: Any, key: str) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise UserError(f"Config key '{key}' is {value!r}.", "It must be true or false.")
    return str(value).lower() == "true"


def _number(kind: type[int] | type[float], limit: Range, value: Any, key: str) -> int | float:
    number = _decimal(str(value))
    if limit.low <= number <= limit.high and (kind is float or number % 1 == 0):
        return kind(number)
    what = "a whole number" if kind is int else "a number"
    raise UserError(f"Config key '{key}' is {value!r}.", f"It must be {what} from {limit.low:g} to {limit.high:g}.")


def _decimal(text: str) -> int | float:
    """The number that a text says, whole ones exactly; NaN if it says none."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    return math.nan


def _text(path: PathOr | None, value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"Config key '{key}' is {value!r}.", "It must be text.")
    is_typed_path = path is not None and isinstance(value, _Typed) and value not in ("", *path.words)
    return _seen_from_repository(value) if is_typed_path else str(value)


def _seen_from_repository(path: str) -> str:
    """A path that is relative to the working directory as one that is relative to the repository, if it lies there."""
    absolute = Path(os.path.abspath(os.path.expanduser(path)))
    return str(absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else absolute)


def _items(value: Any, key: str) -> list[Any]:
    """The items of a list, or of one typed as `[a, b]`; an item in quotes may hold commas."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if not isinstance(value, _Typed) or not re.fullmatch(r"\[.*\]", value, re.DOTALL):
        raise UserError(f"Config key '{key}' is {value!r}.", "It must be a list, such as [a, b].")
    items = [item.strip() for item in re.split(r',(?=(?:[^"]*"[^"]*")*[^"]*$)', value[1:-1])]
    return [_Typed(re.sub(r"""^(["'])(.*)\1$""", r"\2", item, flags=re.DOTALL)) for item in items if item]

"""Latency and throughput of LGNet's forward pass beside a bare torchvision ResNet-50, timed in turns in one process.

LGNet runs as test.py and demo.py run it, ResNet-50 as torchvision gives it, both under the same options. A busy machine
slows both, so their ratio tells more than either: it is the median over the rounds of one time by the other in the same
round. A second ratio compares with a ResNet-50 that is prepared for inference as LGNet is.

Weights and images are random, which changes no time. But random weights make much of roundings: for a drift that means
something, --checkpoint names a snapshot, which is run on the first pictures of its test split.

--json FILE: one row for each model, batch and variant: model, batch, variant, device, ms, images_per_s, resnet50_ms,
             ratio_resnet50, ratio_prepared_resnet50, params_m, gmac (for one image),
             drift_mm (of the final vertex that moves farthest, against the model as it is trained, float32 and eager)
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common.errors import UserError
from common.mano.model import HandModel
from common.nets.torchvision_import import import_torchvision
from common.nets.zoo import build_model
from common.predict.fast import Autocast, accelerated, for_inference
from data.augment import float_image
from main.build import build_dataset, build_hand_model, build_trained_model
from main.config import changed_config, config_from_dict, load_config
from main.engine.processes.launch import choose_devices
from main.engine.run.snapshots import load_trained

HELP = "forward pass beside a bare ResNet-50"


class Variant(NamedTuple):
    """Options under which both networks run."""

    precision: str = "float32"
    channels_last: bool = False
    compile_mode: str = ""


VARIANTS = {
    "float32": Variant(),
    "channels_last": Variant(channels_last=True),
    "bfloat16": Variant("bfloat16"),
    "bfloat16+channels_last": Variant("bfloat16", channels_last=True),
    "compile": Variant(compile_mode="default"),
    "compile+bfloat16": Variant("bfloat16", channels_last=True, compile_mode="default"),
    "reduce-overhead": Variant(compile_mode="reduce-overhead"),
    "reduce-overhead+bfloat16": Variant("bfloat16", channels_last=True, compile_mode="reduce-overhead"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", nargs="+", default=["lgnet", "lgnet_light"], help="models, as for train.py")
    parser.add_argument("--checkpoint", type=Path, help="the model of this snapshot instead, on its test pictures")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="change the configuration, for example data.root=FOLDER")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32], help="images at once")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=["float32"], help="options of both networks")
    parser.add_argument("--gpu", help="one device, as for train.py")
    parser.add_argument("--seconds", type=float, default=20, help="about how long each row is timed")
    parser.add_argument("--json", type=Path, help="write the rows here")


def run(args: argparse.Namespace) -> None:
    if min(args.batch) < 1:
        raise UserError(f"--batch holds {min(args.batch)}.", "It must be at least 1.")
    device = choose_devices(args.gpu, torch.cuda.device_count())[0]
    rows = []
    print(f"{_device_name(device)}, torch {torch.__version__}\n\n{_HEADER}")
    for name, subject in _subjects(args).items():
        model = subject.model.to(device).eval()
        cost = {"model": name, "params_m": sum(p.numel() for p in model.parameters()) / 1e6,
                "gmac": _gmac(model, subject.size)}
        for variant in args.variant:
            for batch in args.batch:
                rows.append(cost | {"batch": batch, "variant": variant, "device": _device_name(device)}
                            | _measured(model, subject.hand_model, subject.images(batch).to(device), VARIANTS[variant],
                                        args.seconds))
                print(_line(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


class _Subject(NamedTuple):
    model: nn.Module
    hand_model: HandModel
    size: int                           # side of its input, pixels
    images: Callable[[int], Tensor]     # so many for it, (B, 3, S, S)


def _subjects(args: argparse.Namespace) -> dict[str, _Subject]:
    """The models to be timed, by name."""
    if args.checkpoint:
        return {args.checkpoint.name: _trained(args.checkpoint, args.set)}
    subjects = {}
    for name in args.config:
        config = load_config(name, ["model.pretrained=", *args.set])
        torch.manual_seed(0)
        hand_model, size = build_hand_model(config.hand_model), config.model.input_size
        model = build_model(config.model, hand_model)
        subjects[name] = _Subject(model, hand_model, size, partial(_random_images, size))
    return subjects


def _trained(checkpoint: Path, overrides: list[str]) -> _Subject:
    trained = load_trained(checkpoint)
    config = changed_config(config_from_dict(trained.config), overrides)
    hand_model = build_hand_model(config.hand_model)
    model = build_trained_model(config.model, hand_model, trained.model, str(checkpoint))
    dataset = build_dataset(config, hand_model, config.data.testset, config.data.test_split)

    def pictures(count: int) -> Tensor:
        if count > len(dataset):
            raise UserError(f"--batch holds {count}, and the test split {len(dataset)} pictures.", "Use smaller ones.")
        samples = [dataset[0, index] for index in range(count)]
        return torch.stack([float_image(sample.pixels, sample.gain) for sample in samples])

    return _Subject(model, hand_model, config.model.input_size, pictures)


def _random_images(size: int, count: int) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def _gmac(model: nn.Module, size: int) -> float:
    """Multiply-adds of one image in matrix products, convolutions and attention, in 10⁹."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    return counter.get_total_flops() / 2e9


def _measured(model: nn.Module, hand_model: HandModel, image: Tensor, variant: Variant, seconds: float
              ) -> dict[str, float]:
    resnet = import_torchvision().models.resnet50().to(image.device).eval()
    bare = accelerated(copy.deepcopy(resnet), channels_last=variant.channels_last, compile_mode=variant.compile_mode)
    if variant.precision == "bfloat16":
        bare = Autocast(bare)
    prepared, prepared_resnet = (for_inference(each, hand_model, **variant._asdict()) for each in (model, resnet))
    networks = [prepared, bare, prepared_resnet]
    with torch.inference_mode():
        ours, bare_s, prepared_s = zip(*_in_turns(networks, image, seconds), strict=True)
        moved = networks[0](image).final.vertices.float() - model(image).final.vertices
    ms = 1e3 * statistics.median(ours)
    return {
        "ms": ms, "images_per_s": 1e3 * len(image) / ms, "resnet50_ms": 1e3 * statistics.median(bare_s),
        "ratio_resnet50": _median_ratio(ours, bare_s), "ratio_prepared_resnet50": _median_ratio(ours, prepared_s),
        "drift_mm": 1e3 * moved.norm(dim=-1).max().item(),
    }


def _median_ratio(times: tuple[float, ...], others: tuple[float, ...]) -> float:
    return statistics.median(time / other for time, other in zip(times, others, strict=True))


def _in_turns(networks: list[nn.Module], image: Tensor, seconds: float) -> list[list[float]]:
    """Seconds of each network, round by round, for about as long as asked and five rounds at least."""
    for network in networks * 3:            # compiles, and fills caches
        _seconds(network, image)
    rounds, end = [], time.perf_counter() + seconds
    while len(rounds) < 5 or time.perf_counter() < end:
        rounds.append([_seconds(network, image) for network in networks])
    return rounds


def _seconds(network: nn.Module, image: Tensor) -> float:
    start = time.perf_counter()
    network(image)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


_HEADER = ("model              batch  variant                      ms  images/s  ResNet-50 ms  ratio  prepared  "
           "params M   GMAC  drift mm")


def _line(row: dict[str, Any]) -> str:
    return (f"{row['model']:<18} {row['batch']:>5}  {row['variant']:<24} {row['ms']:>7.1f} {row['images_per_s']:>9.1f} "
            f"{row['resnet50_ms']:>13.1f} {row['ratio_resnet50']:>6.2f} {row['ratio_prepared_resnet50']:>9.2f} "
            f"{row['params_m']:>9.1f} {row['gmac']:>6.2f} {row['drift_mm']:>9.4f}")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"

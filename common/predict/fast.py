"""Ways to run a model faster that leave its weights and their names alone."""

import copy
import importlib.util
import os
import shutil

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.mano.model import HandModel, ManoLayer
from common.predict.flip import FlipTest
from common.predict.packed import fold_batch_norms, pack_layers
from common.types import Stages


def accelerated(model: nn.Module, *, channels_last: bool, compile_mode: str) -> nn.Module:
    """The same model, sharing its weights, for a faster forward pass; its state dict is read from `model`.

    channels_last: convolutions see their maps as (H, W, C) in memory. Changes the layout of `model`'s own weights.
    compile_mode: "" for none, else a mode of torch.compile, whose first calls take minutes.
    Raises UserError where torch.compile cannot work.
    """
    if channels_last:
        model.to(memory_format=torch.channels_last)     # type: ignore[call-overload]   # torch's own stubs lack it
    if not compile_mode:
        return model
    if not can_compile():
        raise UserError(f"torch.compile (mode '{compile_mode}') needs a C++ compiler, and none was found.",
                        "Install g++ or clang++, or leave compile empty.")
    for layer in model.modules():
        if isinstance(layer, ManoLayer):    # torch.compile cannot follow smplx's walk along the parents. Said here and
            # not by a decorator, which would import the compiler, a second at every start.
            layer.forward = torch.compiler.disable(layer.forward)   # type: ignore[method-assign]
    return torch.compile(model, mode=compile_mode)      # type: ignore[return-value]    # a module for a module


def for_inference(model: nn.Module, hand_model: HandModel, *, precision: str = "float32", channels_last: bool = False,
                  compile_mode: str = "", flip_test: bool = False) -> nn.Module:
    """A copy of `model` that predicts the same, to rounding, in less time, and cannot be trained.

    precision: "float32" or "bfloat16".  channels_last, compile_mode: as for `accelerated`.
    flip_test: predict as FlipTest does instead, with `hand_model`.
    On a CPU and not compiled, oneDNN holds the weights in its own layout; channels_last then changes nothing.
    """
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norms(fast)
    device = next(fast.parameters()).device
    fast = accelerated(fast, channels_last=channels_last, compile_mode=compile_mode)
    if device.type == "cpu" and not compile_mode and torch.backends.mkldnn.is_available():
        pack_layers(fast, getattr(torch, precision))
    if precision == "bfloat16":
        fast = Autocast(fast)
    return FlipTest(fast, ManoLayer(hand_model).to(device)) if flip_test else fast


def use_free_cores() -> None:
    """Compute on no more threads than cores have been free in the last minute, unless OMP_NUM_THREADS says how many.

    Threads wait for each other in every operation. One that has to share its core holds up all: with another program on
    each of two cores, an image took 2 threads 0.5 s in the mean and 3 s at worst, and one thread 0.06 s. Waiting
    asleep (OMP_WAIT_POLICY=PASSIVE) helps there less, and takes twice the time on a quiet machine.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        free = round((os.cpu_count() or 1) - os.getloadavg()[0])
        torch.set_num_threads(max(1, min(torch.get_num_threads(), free)))


class Autocast(nn.Module):
    """A model that computes in bfloat16 where that is safe."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Stages:
        with torch.autocast(image.device.type, torch.bfloat16):
            return self.model(image)


def can_compile() -> bool:
    """Whether torch.compile finds what it generates code for: Triton on a GPU, else a C++ compiler."""
    if torch.cuda.is_available() and importlib.util.find_spec("triton"):
        return True
    return any(shutil.which(name) for name in ("g++", "clang++"))

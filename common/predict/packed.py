"""A network's layers rewritten for prediction: the same outputs, to rounding, in fewer and faster operations."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from common.nets.gin import GIN
from common.nets.layers import TokenBatchNorm


def fold_batch_norms(model: nn.Module) -> None:
    """Put each batch normalisation of a model in eval mode into the convolution or linear layer before it."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            norm = parent._modules.get(_name_of_norm(name))
            norm = norm.norm if isinstance(norm, TokenBatchNorm) else norm
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and _fold(parent, name, layer, norm):
                setattr(parent, _name_of_norm(name), nn.Identity())


def _name_of_norm(name: str) -> str:
    """What the normalisation after a layer is called: torchvision's bn1 after conv1, the next in an nn.Sequential."""
    return str(int(name) + 1) if name.isdigit() else name.replace("conv", "bn")


def _fold(parent: nn.Module, name: str, layer: nn.Module, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> bool:
    """Whether `layer` is of a kind that can take the normalisation; then it has taken it."""
    if isinstance(layer, nn.Conv2d):
        setattr(parent, name, fuse_conv_bn_eval(layer, norm))
    elif isinstance(layer, nn.Linear):
        setattr(parent, name, fuse_linear_bn_eval(layer, norm))
    elif isinstance(layer, GIN):
        layer.to_out = fuse_linear_bn_eval(layer.to_out, norm)
    else:
        return False
    return True


class PackedLinear(nn.Module):
    """nn.Linear by oneDNN, on a CPU. torch gives float32 products to MKL, which on AMD processors takes two to three
    times as long; oneDNN is also what torch.compile chooses.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype))
        self.bias, self.dtype = _bias(linear, dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")


class PackedConv2d(nn.Module):
    """nn.Conv2d by oneDNN, on a CPU. It brings the weights into oneDNN's layout at the first call, when it sees how
    large the maps are; nn.Conv2d does so at every call, which for one image takes as long as the convolution.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype):
        super().__init__()
        self.form = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        self.weight, self.is_packed = conv.weight.detach().to(dtype), False
        self.bias, self.dtype = _bias(conv, dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.form, x.shape)
            self.is_packed = True
        return torch.ops.mkldnn._convolution_pointwise(
            x.to(self.dtype), self.weight, self.bias, *self.form, "none", [], "")


_PACKED = {nn.Linear: PackedLinear, nn.Conv2d: PackedConv2d}


def pack_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Let oneDNN compute the linear layers and convolutions of a model on the CPU, in float32 or bfloat16."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) in _PACKED:
                setattr(parent, name, _PACKED[type(layer)](layer, dtype))


def _bias(layer: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> Tensor | None:
    return None if layer.bias is None else layer.bias.detach().to(dtype)

"""The image backbone: torchvision's ResNet as a feature extractor.

Legend: B batch · S side of the input, divisible by 32.
"""

from typing import NamedTuple

from torch import Tensor, nn

from common.nets.torchvision_import import import_torchvision


class ImageFeatures(NamedTuple):
    """Feature maps of one image, fine to coarse."""

    stem: Tensor        # (B, 64, S/2, S/2)
    layer1: Tensor      # (B, 256, S/4, S/4)      64 channels in ResNet-18 and -34
    layer4: Tensor      # (B, 2048, S/32, S/32)   512 channels in ResNet-18 and -34; F of the paper


class MapChannels(NamedTuple):
    """Of the maps of ImageFeatures."""

    stem: int
    layer1: int
    layer4: int


class ResNet(nn.Module):
    """ImageFeatures of a normalised image (B, 3, S, S).

    name: "resnet18", "resnet34" or "resnet50"; the weights are random, see `common.nets.pretrained`.
    """

    def __init__(self, name: str):
        super().__init__()
        net = import_torchvision().models.get_model(name)
        self.name = name
        self.channels = MapChannels(net.conv1.out_channels, _out_channels(net.layer1), _out_channels(net.layer4))
        # torchvision's names: the state dict of this module is one of torchvision's without the classifier.
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, image: Tensor) -> ImageFeatures:
        stem = self.relu(self.bn1(self.conv1(image)))
        layer1 = self.layer1(self.maxpool(stem))
        return ImageFeatures(stem, layer1, self.layer4(self.layer3(self.layer2(layer1))))


def _out_channels(layer: nn.Sequential) -> int:
    convolutions = [module for module in layer[-1].modules() if isinstance(module, nn.Conv2d)]
    return convolutions[-1].out_channels

"""A small LGNet and made-up targets for the tests of networks and losses."""

import torch

from common.geometry import project
from common.hands import joint_regressor
from common.mano.model import HandModel
from common.nets.lgnet import LGNet
from common.nets.zoo import ModelConfig, build_model
from common.types import ManoParams, Targets

SIZE = 64
TINY = {"backbone": "resnet18", "input_size": SIZE, "channels": 32}


def tiny_lgnet(hand_model: HandModel, *variants: str, seed: int = 0, **changes) -> LGNet:
    """An untrained LGNet with 32 channels for 64 px, in eval mode, whose refine stage already moves vertices.

    variants: names in common.nets.variants.
    """
    torch.manual_seed(seed)
    model = build_model(ModelConfig(**(TINY | {"variants": variants} | changes)), hand_model).eval()
    if model.refine is not None:
        for net in model.refine.offset_net.nets:
            torch.nn.init.normal_(net.layers[-1].to_out.weight, std=1e-3)
    return model


def random_images(batch: int, seed: int = 0, size: int = SIZE) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_targets(hand_model: HandModel, batch: int, seed: int = 0, size: int = SIZE) -> Targets:
    """Fully annotated, consistent targets: noisy rest hands 1.2 m from a camera, wrists some centimetres apart."""
    generator = torch.Generator().manual_seed(seed)
    noise = 0.002 * torch.randn(batch, 2, 778, 3, generator=generator)
    regressor = joint_regressor(hand_model.regressor)
    vertices = hand_model.template + noise
    vertices = vertices - (regressor @ vertices)[:, :, :1]
    joints = regressor @ vertices
    focal = 2.0 * size
    camera = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    wrist = 0.05 * torch.randn(batch, 2, 3, generator=torch.Generator().manual_seed(seed))
    wrist = wrist + torch.tensor([0.0, 0.0, 1.2])
    return Targets(
        vertices=vertices, joints=joints, wrist=wrist, relative=wrist[:, 1] - wrist[:, 0],
        joints_crop=project(joints + wrist[:, :, None], camera),
        joints_annotated=joints + wrist[:, :, None],
        mano=ManoParams(torch.eye(3).expand(batch, 2, 16, 3, 3), torch.randn(batch, 2, 10, generator=generator)),
        present=torch.ones(batch, 2),
        vertices_valid=torch.ones(batch, 2), joints_valid=torch.ones(batch, 2, 21),
        joints_annotated_valid=torch.ones(batch, 2, 21),
        relative_valid=torch.ones(batch), mano_valid=torch.ones(batch, 2),
        present_valid=torch.ones(batch, 2),
    )



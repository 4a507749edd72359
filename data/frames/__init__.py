"""Photographs of a user: a folder, one file, RGB2Hands or EgoHands, with an optional JSON file of boxes."""

from data.frames.boxes import read_boxes
from data.frames.folder import ImageFolder, Photo

__all__ = ["ImageFolder", "Photo", "read_boxes"]

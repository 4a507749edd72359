"""Photographs of a user: a folder or one file, with an optional JSON file of boxes."""

from data.ImageFolder.boxes import read_boxes
from data.ImageFolder.images import ImageFolder, Photo, UnreadableImage, crop_image

__all__ = ["ImageFolder", "Photo", "UnreadableImage", "crop_image", "read_boxes"]

"""Photographs of a user: a folder, one file, RGB2Hands or EgoHands, with an optional JSON file of boxes."""

"""Mosaics: folders of tile files that are one image, written tile by tile, read like a file."""

"""The seam to ESPnet: the only files of the package that import `espnet2`."""

"""Formats of files that several layers read and write: two-column files, HDF5."""

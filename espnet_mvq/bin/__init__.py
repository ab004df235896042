"""Command line tools of espnet_mvq."""

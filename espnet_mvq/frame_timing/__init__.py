"""Time grids of ESPnet's front ends and encoders, without ESPnet."""

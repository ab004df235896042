"""Exchange of codebook indexes and quantizers with other programs."""

"""Multi-codebook quantization of embeddings: pure torch, usable without ESPnet."""

from espnet_mvq.quantization.quantizer import Quantizer
from espnet_mvq.quantization.trainer import QuantizerTrainer

__all__ = ["Quantizer", "QuantizerTrainer"]

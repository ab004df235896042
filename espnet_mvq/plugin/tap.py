"""Reading a layer of an ESPnet encoder without changing the encoder."""

import contextlib
from typing import Any, Iterator, Optional, Tuple, Union

import torch


class EncoderTap:
    """Listens to the output of one encoder layer through forward hooks.

    The encoder stays as it is: `encode()`, its state dict and its class are those of
    stock ESPnet. Outputs are kept only inside `with tap.listening():`.

    Args:
        encoder: ESPnet encoder.
        layer: Block, counted from 1; -1 = encoder output; or the dotted path of a
            submodule of the encoder, for example "encoders.5".

    Raises:
        ValueError: If the encoder has no such layer.
    """

    def __init__(self, encoder: torch.nn.Module, layer: Union[int, str]):
        self.layer = layer
        self._listening = False
        self._output: Optional[torch.Tensor] = None
        self._lengths: Optional[torch.Tensor] = None
        encoder.register_forward_hook(self._on_encoder)
        if layer != -1:
            _find_layer(encoder, layer).register_forward_hook(self._on_layer)

    @contextlib.contextmanager
    def listening(self) -> Iterator["EncoderTap"]:
        """Keep what the layer puts out while the block runs."""
        self._listening, self._output, self._lengths = True, None, None
        try:
            yield self
        finally:
            # Gradient checkpointing runs layers again in the backward pass; by then
            # nobody listens any more.
            self._listening = False

    def take(self) -> Tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
        """Hand over what was heard, once.

        Returns:
            Layer output, (B, T, C), and its lengths, int64, (B,); None and None if
            the layer did not run (layer drop).
        """
        output, lengths = self._output, self._lengths
        self._output = self._lengths = None
        if output is None or lengths is None:
            return None, None
        if output.dim() != 3:
            raise ValueError(
                f"mvq_conf layer {self.layer}: puts out {tuple(output.shape)}, "
                "expected (batch, time, channels); blocks of streaming encoders work "
                "on chunks: use layer: -1, the encoder output"
            )
        return output, lengths

    def _on_encoder(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if not self._listening:
            return
        self._lengths = output[1]
        if self.layer == -1:
            self._output = _first_tensor(output)

    def _on_layer(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if self._listening:
            self._output = _first_tensor(output)


def _first_tensor(output: Any) -> torch.Tensor:
    """Unpack (x, mask), ((x, pos_emb), mask), ((x, intermediate), lengths, ...)."""
    while isinstance(output, (tuple, list)):
        output = output[0]
    return output


def _find_layer(encoder: torch.nn.Module, layer: Union[int, str]) -> torch.nn.Module:
    """Return the submodule a layer number or path stands for."""
    name = type(encoder).__name__
    if isinstance(layer, str):
        try:
            return encoder.get_submodule(layer)
        except AttributeError as error:
            raise ValueError(
                f"mvq_conf layer {layer!r}: {name} has no such submodule ({error})"
            ) from error
    blocks = getattr(encoder, "encoders", None)
    try:
        num_blocks = len(blocks)
    except TypeError:
        raise ValueError(
            f"mvq_conf layer {layer}: {name} has no numbered blocks; use layer: -1, "
            "the encoder output, or the dotted path of a submodule"
        ) from None
    if not 1 <= layer <= num_blocks:
        raise ValueError(
            f"mvq_conf layer: got {layer}, expected 1 to {num_blocks} or -1: {name} "
            f"has {num_blocks} blocks"
        )
    return blocks[layer - 1]

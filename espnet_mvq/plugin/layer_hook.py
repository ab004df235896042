"""Reading a layer of an ESPnet encoder without changing the encoder."""

import contextlib
import inspect
import math
from typing import Any, Dict, Iterator, Optional, Tuple, Union

import torch

from espnet_mvq.frame_timing.encoders import (
    counts_padding,
    find_blocks,
    first_tensor,
    num_frames,
)

# Layer drop silences a layer for some batches, but hardly for so many.
MAX_RUNS_UNHEARD = 200


class EncoderTap:
    """Listens to the output of one encoder layer through forward hooks.

    The encoder stays as it is: `encode()`, its state dict and its class are those of
    stock ESPnet. Outputs are kept only inside `with tap.listening():`.

    Args:
        encoder: ESPnet encoder.
        layer: Block, counted from 1; -1 = encoder output; or the dotted path of a
            submodule of the encoder, for example "encoders.5".
        own_frames: Leave out, in any encoder, the last frames of an utterance that
            hear padding too. ESPnet counts one or two of them; in the task
            asr_transducer it counts all, and they are left out in any case.

    Attributes:
        num_channels: Channels of the layer's output.

    Raises:
        ValueError: If the encoder has no such layer, or one that works on chunks.
    """

    def __init__(
        self,
        encoder: torch.nn.Module,
        layer: Union[int, str],
        own_frames: bool = False,
    ):
        self.layer = layer
        self._own_frames = own_frames or counts_padding(encoder)
        self._listening = False
        self._output: Optional[torch.Tensor] = None
        self._lengths: Optional[torch.Tensor] = None
        self._own_lengths: Optional[torch.Tensor] = None
        self._num_prefix_frames = 0
        self._num_encoder_frames = 0
        self._num_runs_unheard = 0
        self.num_channels = _num_channels(encoder)
        encoder.register_forward_hook(self._on_encoder, with_kwargs=True)
        if layer != -1:
            module = _find_layer(encoder, layer)
            self.num_channels = _num_channels(module) or self.num_channels
            module.register_forward_hook(self._on_layer)

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

        Raises:
            ValueError: If the layer does not put out (B, T, num_channels), or never
                runs.
        """
        output, lengths = self._output, self._lengths
        self._output = self._lengths = None
        if output is None or lengths is None:
            self._count_silence()
            return None, None
        self._num_runs_unheard = -math.inf
        expected = (len(lengths), self._num_encoder_frames, self.num_channels)
        if (
            output.dim() != 3
            or output.shape[::2] != expected[::2]
            or output.shape[1] < expected[1]
        ):
            raise ValueError(
                f"mvq_conf layer {self.layer}: puts out {tuple(output.shape)}, "
                f"expected (batch, time, channels) = {expected}; use the number of a "
                "block, or -1, the encoder output"
            )
        # Tokens that the encoder of S2T-CTC puts before the speech
        prefix = self._num_prefix_frames
        # Lengths of RNNs lie on the CPU, and may exceed the frames there are.
        lengths = lengths.to(output.device).clamp(max=output.shape[1]) - prefix
        if self._own_lengths is not None:
            lengths = lengths.minimum(self._own_lengths.to(output.device))
        return output[:, prefix:], lengths

    def _count_silence(self) -> None:
        """Refuse a layer that has never been heard.

        An encoder may run the blocks in a list one by one, and not the list.
        """
        self._num_runs_unheard += 1
        if self._num_runs_unheard == MAX_RUNS_UNHEARD:
            raise ValueError(
                f"mvq_conf layer {self.layer}: the encoder ran {MAX_RUNS_UNHEARD} "
                "times without it; use the number of a block, -1, the encoder output, "
                "or the path of a submodule that runs"
            )

    def _on_encoder(
        self, module: torch.nn.Module, args: Any, kwargs: Dict[str, Any], output: Any
    ) -> None:
        if not self._listening:
            return
        self._lengths, self._own_lengths = output[1], None
        if self._own_frames and len(args) > 1:
            self._own_lengths = num_frames(module, args[1], self.layer)
        self._num_encoder_frames = first_tensor(output).shape[1]
        prefix = kwargs.get("prefix_embeds") if _takes_prefix(module) else None
        self._num_prefix_frames = 0 if prefix is None else prefix.shape[1]
        if self.layer == -1:
            self._output = first_tensor(output)

    def _on_layer(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if self._listening:
            self._output = first_tensor(output)


def _takes_prefix(encoder: torch.nn.Module) -> bool:
    """Say whether an encoder's input layer puts tokens before the speech.

    That of S2T-CTC leaves this to its input layer, and drops the tokens where that is
    linear.
    """
    embed = getattr(encoder, "embed", None)
    if embed is None:
        return False
    return "prefix_embeds" in inspect.signature(embed.forward).parameters


def _num_channels(module: torch.nn.Module) -> Optional[int]:
    """Return the channels of a module's output as ESPnet's classes tell them."""
    for name in ("output_size", "size", "block_size", "out_features"):
        value = getattr(module, name, None)
        value = value() if callable(value) else value
        if isinstance(value, int):
            return value
    return None


def _find_layer(encoder: torch.nn.Module, layer: Union[int, str]) -> torch.nn.Module:
    """Return the submodule a layer number or path stands for."""
    name = type(encoder).__name__
    blocks = find_blocks(encoder)
    inside = isinstance(layer, int) or layer.split(".")[0] == "encoders"
    if inside and getattr(encoder, "hop_size", 0) and encoder.block_size:
        raise ValueError(
            f"mvq_conf layer {layer}: the blocks of the streaming {name} work on "
            "chunks: use layer: -1, the encoder output"
        )
    if isinstance(layer, str):
        try:
            return encoder.get_submodule(layer)
        except AttributeError as error:
            raise ValueError(
                f"mvq_conf layer {layer!r}: {name} has no such submodule ({error})"
            ) from error
    if blocks is None:
        raise ValueError(
            f"mvq_conf layer {layer}: {name} has no numbered blocks; use layer: -1, "
            "the encoder output, or the dotted path of a submodule"
        )
    if not 1 <= layer <= len(blocks):
        raise ValueError(
            f"mvq_conf layer: got {layer}, expected 1 to {len(blocks)} or -1: {name} "
            f"has {len(blocks)} blocks"
        )
    return blocks[layer - 1]

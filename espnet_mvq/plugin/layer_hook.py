"""Recording a layer of an ESPnet encoder without changing the encoder."""

import contextlib
import inspect
import math
from dataclasses import dataclass
from typing import Any, Dict, Iterator, Optional, Union

import torch

from espnet_mvq.frame_timing.encoders import (
    counts_padding,
    find_blocks,
    first_tensor,
    num_frames,
)
from espnet_mvq.plugin.padded import Padded

# LayerDrop will not skip a layer this often in a row.
MAX_RUNS_WITHOUT_LAYER = 200


@dataclass
class LayerOutput:
    """Output of an encoder layer in one forward.

    Attributes:
        frames: Layer output, (B, T, C), and its lengths. None until the forward has
            ended, and if the layer did not run (LayerDrop).
    """

    frames: Optional[Padded] = None


class LayerHook:
    """Records the output of one encoder layer through forward hooks.

    The encoder stays as it is: `encode()`, its state dict and its class are those of
    stock ESPnet. The hooks are registered only inside `with layer_hook.record():`.

    Args:
        encoder: ESPnet encoder.
        layer: Block, counted from 1; -1 = encoder output; or the dotted path of a
            submodule of the encoder, for example "encoders.5".
        own_frames: Leave out the last frames of an utterance, whose receptive fields
            reach into the padding. ESPnet counts one or two of them; in the task
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
        self._encoder = encoder
        self._module = encoder if layer == -1 else _find_layer(encoder, layer)
        self.num_channels = _num_channels(self._module) or _num_channels(encoder)
        self._own_frames = own_frames or counts_padding(encoder)
        self._takes_prefix = _takes_prefix(encoder)
        self._num_runs_without_layer = 0

    @contextlib.contextmanager
    def record(self) -> Iterator[LayerOutput]:
        """Record the layer's output while the block runs one forward.

        Raises:
            ValueError: If the output is not (B, T, num_channels), or the layer never
                runs.
        """
        recorded = LayerOutput()
        outputs: Dict[str, Any] = {}

        def on_layer(module: torch.nn.Module, args: Any, output: Any) -> None:
            outputs["layer"] = first_tensor(output)

        def on_encoder(
            module: torch.nn.Module, args: Any, kwargs: Dict[str, Any], output: Any
        ) -> None:
            prefix = kwargs.get("prefix_embeds") if self._takes_prefix else None
            outputs.update(
                num_frames=first_tensor(output).shape[1],
                lengths=output[1],
                own_lengths=None,
                num_prefix_frames=0 if prefix is None else prefix.shape[1],
            )
            if self._own_frames and len(args) > 1:
                outputs["own_lengths"] = num_frames(module, args[1], self.layer)

        # First, so that hooks of others do not change the recorded output.
        hooks = [
            self._module.register_forward_hook(on_layer, prepend=True),
            self._encoder.register_forward_hook(
                on_encoder, prepend=True, with_kwargs=True
            ),
        ]
        try:
            yield recorded
        finally:
            # Gradient checkpointing runs layers again in the backward pass.
            for hook in hooks:
                hook.remove()
        if "layer" in outputs and "lengths" in outputs:
            self._num_runs_without_layer = -math.inf
            recorded.frames = self._frames(**outputs)
        else:
            self._count_run_without_layer()

    def _frames(
        self,
        layer: torch.Tensor,
        num_frames: int,
        lengths: torch.Tensor,
        own_lengths: Optional[torch.Tensor],
        num_prefix_frames: int,
    ) -> Padded:
        """Return the frames that show speech."""
        expected = (len(lengths), num_frames, self.num_channels)
        if (
            layer.dim() != 3
            or layer.shape[::2] != expected[::2]
            or layer.shape[1] < num_frames
        ):
            raise ValueError(
                f"mvq_conf layer {self.layer}: puts out {tuple(layer.shape)}, "
                f"expected (batch, time, channels) = {expected}; use the number of a "
                "block, or -1, the encoder output"
            )
        # Lengths of RNNs lie on the CPU, and may exceed the frames of the output.
        lengths = lengths.to(layer.device).clamp(max=layer.shape[1])
        # The encoder of S2T-CTC puts tokens before the speech.
        lengths = lengths - num_prefix_frames
        if own_lengths is not None:
            lengths = lengths.minimum(own_lengths.to(layer.device))
        return Padded(layer[:, num_prefix_frames:], lengths)

    def _count_run_without_layer(self) -> None:
        """Refuse a layer that has never run.

        An encoder may run the blocks in a list one by one, and not the list.
        """
        self._num_runs_without_layer += 1
        if self._num_runs_without_layer == MAX_RUNS_WITHOUT_LAYER:
            raise ValueError(
                f"mvq_conf layer {self.layer}: the encoder ran "
                f"{MAX_RUNS_WITHOUT_LAYER} times without it; use the number of a "
                "block, -1, the encoder output, or the path of a submodule that runs"
            )


def works_on_chunks(encoder: torch.nn.Module) -> bool:
    """Whether the blocks of an encoder see chunks of the speech, as in streaming."""
    return bool(getattr(encoder, "hop_size", 0) and encoder.block_size)


def _takes_prefix(encoder: torch.nn.Module) -> bool:
    """Whether an encoder's input layer puts tokens before the speech.

    The encoder of S2T-CTC leaves this to its input layer; a linear one drops them.
    """
    embed = getattr(encoder, "embed", None)
    if embed is None:
        return False
    return "prefix_embeds" in inspect.signature(embed.forward).parameters


def _num_channels(module: torch.nn.Module) -> Optional[int]:
    """Return the channels of a module's output, read from ESPnet's attributes."""
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
    if inside and works_on_chunks(encoder):
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

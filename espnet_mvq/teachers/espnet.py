"""Teachers trained with ESPnet: encoders of ASR, SSL and HuBERT models."""

import functools
import inspect
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from espnet_mvq.frame_timing.encoders import find_blocks, first_tensor
from espnet_mvq.frame_timing.front_ends import frame_grid, min_samples
from espnet_mvq.teachers.base import (
    Forward,
    Teacher,
    TeacherError,
    check_frames,
    embedding_errors,
    resolve_layer,
)
from espnet_mvq.teachers.espnet_folder import (
    BUILD_FAILURE,
    fill,
    find_checkpoint,
    read_config,
    read_state,
    sample_rate_hz,
    stand_in_statistics,
)
from espnet_mvq.teachers.model_id import ESPNET_PARTS, espnet_settings, weights_hash
from espnet_mvq.teachers.speech_model import loading

# Names of encoders in the HuBERT task -> in the ASR task
_ASR_NAMES = {"torchaudio_hubert": "torchaudiohubert"}


class ESPnetTeacher(Teacher):
    """The encoder of a model in an ESPnet experiment folder.

    Only front end, normalisation, pre-encoder and encoder are built, from
    `config.yaml`, and filled from the checkpoint; decoder, SpecAug and, of students of
    `model: mvq`, the parts of the plugin are not. Only utterances of equal length share
    a batch, so that padding changes no results.

    Args:
        spec: The whole name, for messages and the id.
        name: Experiment folder, with `config.yaml` and a checkpoint.
        layer: Block, counted from 1; 0 = input of the first block; -1 = encoder
            output, which in most encoders is the last block's output normalised.
        device: Device of the encoder.
        checkpoint: File in the folder; default: the first that exists of
            `espnet_folder.CHECKPOINTS`.
        frame_shift_samples: Samples between two encoder frames; needed for front ends
            and encoders whose subsampling is not known here.
        frame_offset_samples: Centre of frame 0, in samples; needed for the same.

    Raises:
        TeacherError: If folder, config or checkpoint are missing, damaged, or of a
            model without an encoder of speech; if there is no such layer; or if frame
            shift and offset are unknown or wrong.
    """

    def __init__(
        self,
        spec: str,
        name: str,
        layer: int,
        device: torch.device,
        checkpoint: Optional[str] = None,
        frame_shift_samples: Optional[int] = None,
        frame_offset_samples: Optional[float] = None,
    ):
        self.spec = spec
        folder = Path(name).expanduser()
        config = read_config(spec, folder / "config.yaml")
        state = read_state(spec, find_checkpoint(spec, folder, checkpoint))
        with loading(spec, BUILD_FAILURE):
            self._parts = self._build(config, state)
        own = {k: v for k, v in state.items() if k.split(".")[0] in self._parts}
        fill(spec, self._parts, own)
        weights = self._parts.state_dict().items()
        settings = espnet_settings(config)
        self._normalizes_utterances = config.get("normalize") == "utterance_mvn"
        if self._normalizes_utterances:
            # Earlier versions normalised the segments of long speech one by one.
            settings["statistics"] = "of whole utterances"
        content = weights_hash(weights, settings)
        self.id = f"espnet/{folder.resolve().name}@{content}"
        self.sample_rate = sample_rate_hz(f"teacher {spec}", config)
        grid = frame_shift_samples, frame_offset_samples
        if None in grid:
            known = frame_grid(**self._parts) or (None, None)
            grid = tuple(k if g is None else g for g, k in zip(grid, known))
        if None in grid:
            raise TeacherError(
                f"teacher {spec}: the frames of its {self._describe()} are not known "
                "here; give --teacher_conf frame_shift_samples=... and --teacher_conf "
                "frame_offset_samples=... (centre of the first frame)"
            )
        check_frames(spec, *grid)
        if grid[0] == int(grid[0]):  # s3prl's tiled frames come as a float
            grid = int(grid[0]), grid[1]
        self.frame_shift_samples, self.frame_offset_samples = grid
        self._min_samples = min_samples(self._parts, self.frame_offset_samples)
        self._layer_output: Optional[torch.Tensor] = None
        # Mean and deviation of an utterance whose segments are being embedded
        self._statistics: Optional[Tuple[torch.Tensor, torch.Tensor]] = None
        self.layer = self._tap(layer)
        self.device = device
        self._parts.to(device).eval().requires_grad_(False)
        self.dim = self._check_frames()

    def _build(
        self, config: Dict[str, Any], state: Dict[str, torch.Tensor]
    ) -> torch.nn.ModuleDict:
        """Build the parts, named as in the checkpoint, with random weights."""
        return _build_parts(config, state)

    def _prepare(self, waveform: torch.Tensor) -> torch.Tensor:
        """Lengthen (S,) to at least one frame."""
        missing = max(0, self._min_samples - len(waveform))
        return torch.nn.functional.pad(waveform, (0, missing))

    def _embed(
        self, waveforms: Sequence[torch.Tensor], forward: Forward
    ) -> List[torch.Tensor]:
        """See `Teacher._embed`; utterance_mvn uses statistics of whole speech."""
        embed = functools.partial(super()._embed, forward=forward)
        if not self._normalizes_utterances:
            return embed(waveforms)
        longest = int(self.segment_s * self.sample_rate)
        uncut = iter(embed([w for w in waveforms if len(w) <= longest]))
        embeddings = []
        for waveform in waveforms:
            if len(waveform) <= longest:
                embeddings.append(next(uncut))
                continue
            self._statistics = self._utterance_statistics(waveform, longest)
            try:
                embeddings += embed([waveform])
            finally:
                self._statistics = None
        return embeddings

    def _utterance_statistics(
        self, waveform: torch.Tensor, longest: int
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return mean and deviation of the features of long speech, (1, 1, D) each.

        A front end with weights, such as a self-supervised model, gets pieces of
        `longest` samples at most: its memory may grow with the square of the length.
        """
        front_end = self._parts["frontend"] if "frontend" in self._parts else None
        with_weights = front_end and any(True for _ in front_end.parameters())
        num_pieces = -(-len(waveform) // longest) if with_weights else 1
        speech = waveform.detach().float()[None].to(self.device)
        pieces = speech.chunk(num_pieces, dim=1)
        lengths = [torch.tensor([piece.shape[1]]) for piece in pieces]
        features = torch.cat([self._features(*p)[0] for p in zip(pieces, lengths)], 1)
        conf = self._parts["normalize"]
        mean = features.mean(1, keepdim=True)
        deviation = features.std(1, keepdim=True, unbiased=False).clamp(min=conf.eps)
        return (
            mean if conf.norm_means else torch.zeros_like(mean),
            deviation if conf.norm_vars else torch.ones_like(deviation),
        )

    def _features(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return the features of the front end, (B, T, D), and lengths, (B,)."""
        x, lengths = speech, speech_lengths.to(self.device)
        # As ESPnet: in half precision the logarithm of silence is infinite.
        with torch.autocast(self.device.type, enabled=False):
            if "frontend" in self._parts:
                x, lengths = self._parts["frontend"](x, lengths)
        return x, lengths

    def _forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See `Teacher._forward`."""
        x, lengths = self._features(speech, speech_lengths)
        if "normalize" in self._parts:
            with torch.autocast(self.device.type, enabled=False):
                if self._statistics is None:
                    x, lengths = self._parts["normalize"](x, lengths)
                else:
                    mean, deviation = self._statistics
                    x = (x - mean) / deviation
        if "preencoder" in self._parts:
            x, lengths = self._parts["preencoder"](x, lengths)
        options = {}
        if getattr(self._parts["encoder"], "interctc_use_conditioning", False):
            options["ctc"] = self._parts["ctc"]
        self._layer_output = None
        with embedding_errors(self.spec, speech.shape[1]):
            output, lengths = self._parts["encoder"](x, lengths, **options)[:2]
        embeddings = first_tensor(output) if self.layer == -1 else self._layer_output
        expected = (len(speech), int(lengths.max()))
        shape = None if embeddings is None else tuple(embeddings.shape)
        if shape and len(shape) == 3 and shape[0] == expected[0]:
            if shape[1] >= expected[1]:
                return embeddings, lengths
        raise TeacherError(
            f"teacher {self.spec}: layer {self.layer} of {self._describe()} puts out "
            f"{shape}, expected {expected + ('dim',)}; blocks of streaming encoders "
            "work on chunks: use layer -1, the encoder output"
        )

    def _tap(self, layer: int) -> int:
        """Keep the output of a layer at each forward; return the layer's number."""
        blocks = find_blocks(self._parts["encoder"])
        if layer == -1:
            self.blocks = blocks or ()
            return layer
        if blocks is None:
            raise TeacherError(
                f"teacher {self.spec}: got layer {layer}, but {self._describe()} has "
                "no numbered blocks; use layer -1, the encoder output"
            )
        layer = resolve_layer(layer, len(blocks), self.spec)
        self.blocks = blocks[:layer]

        def keep_input(block: torch.nn.Module, args: Any) -> None:
            self._layer_output = first_tensor(args)

        def keep_output(block: torch.nn.Module, args: Any, output: Any) -> None:
            self._layer_output = first_tensor(output)

        if layer == 0:
            blocks[0].register_forward_pre_hook(keep_input)
        else:
            blocks[layer - 1].register_forward_hook(keep_output)
        return layer

    def _describe(self) -> str:
        """Return the class names of the parts."""
        used = (self._parts[name] for name in ESPNET_PARTS if name in self._parts)
        return " + ".join(type(part).__name__ for part in used)

    def _check_frames(self) -> int:
        """Check the frame shift on noise of 1 s and 3 s; return the dimension D."""
        generator = torch.Generator().manual_seed(0)
        noise = 0.1 * torch.randn(3 * self.sample_rate, generator=generator)
        lengths = torch.tensor([self.sample_rate, 3 * self.sample_rate])
        failure = f"{self._describe()} could not embed 1 s and 3 s of noise"
        with loading(self.spec, failure):
            embeddings, frames = self.embed(noise.expand(2, -1), lengths)
        got = int(frames[1] - frames[0])
        expected = 2 * self.sample_rate / self.frame_shift_samples
        if abs(got - expected) > 1.5:
            raise TeacherError(
                f"teacher {self.spec}: got {got} frames for 2 s of speech, expected "
                f"{expected:g} at a frame shift of {self.frame_shift_samples} samples; "
                "give --teacher_conf frame_shift_samples=... and --teacher_conf "
                "frame_offset_samples=... that fit"
            )
        return embeddings.shape[2]


def _build_parts(
    config: Dict[str, Any], state: Dict[str, torch.Tensor]
) -> torch.nn.ModuleDict:
    """Build the parts up to the encoder as ESPnet's tasks do, with random weights.

    The ASR task's tables contain those of the SSL, HuBERT, SLU, S2T and ST tasks.
    """
    from espnet2.asr.ctc import CTC
    from espnet2.tasks import asr

    def build(name: str, stats_file: Optional[str] = None, **sizes: Any):
        kind = _ASR_NAMES.get(config[name], config[name])
        part_class = getattr(asr, f"{name}_choices").get_class(kind)
        known = inspect.signature(part_class).parameters
        conf = {k: v for k, v in sizes.items() if k in known}
        conf.update(config.get(f"{name}_conf") or {})
        if stats_file:
            conf["stats_file"] = stats_file
        return part_class(**conf)

    parts = torch.nn.ModuleDict()
    size = config.get("input_size")
    if size is None:
        parts["frontend"] = build("frontend")
        size = parts["frontend"].output_size()
    if config.get("normalize") == "global_mvn":
        with stand_in_statistics(state) as stats_file:
            parts["normalize"] = build("normalize", stats_file)
    elif config.get("normalize"):
        parts["normalize"] = build("normalize")
    if config.get("preencoder"):
        parts["preencoder"] = build("preencoder", input_size=size)
        size = parts["preencoder"].output_size()
    num_classes = config.get("num_classes")
    sizes = {"num_classes": num_classes} if num_classes else {}
    parts["encoder"] = encoder = build("encoder", input_size=size, **sizes)
    if hasattr(encoder, "finetuning"):
        encoder.finetuning = True  # if not, it needs labels and returns logits
    if getattr(encoder, "ctc_trim", False):
        encoder.ctc_trim = False  # trimming loses the time of frames
    if getattr(encoder, "interctc_use_conditioning", False):
        vocab_size, dim = len(state["ctc.ctc_lo.weight"]), encoder.output_size()
        encoder.conditioning_layer = torch.nn.Linear(vocab_size, dim)
        parts["ctc"] = CTC(vocab_size, dim)
    return parts

"""Teachers trained with ESPnet: the encoder of an ASR, SSL or HuBERT model."""

import contextlib
import inspect
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch

from espnet_mvq.frame_timing.encoders import find_blocks, first_tensor
from espnet_mvq.frame_timing.front_ends import frame_grid, min_samples
from espnet_mvq.teachers.base import (
    EmbeddingError,
    Teacher,
    TeacherError,
    check_frames,
    is_fault_of_device,
    resolve_layer,
    weights_hash,
)
from espnet_mvq.teachers.espnet_folder import find_checkpoint, read_config, read_state
from espnet_mvq.teachers.espnet_normalize import UtteranceNormalizer

# Parts of a model between the speech and the output of the encoder
_PARTS = ("frontend", "normalize", "preencoder", "encoder")
# The HuBERT task has a name of its own for an encoder that the ASR task knows too.
_ASR_NAMES = {"torchaudio_hubert": "torchaudiohubert"}


class ESPnetTeacher(Teacher):
    """The encoder of a model in an ESPnet experiment folder.

    Only front end, normalisation, pre-encoder and encoder are built, from
    `config.yaml`, and filled from the checkpoint; decoder, SpecAug and, of students of
    `model: mvq`, what the plugin added are left aside. Only utterances of equal length
    run together, so that none sees the padding of a batch.

    Args:
        spec: The whole name, for messages and the id.
        name: Experiment folder, with `config.yaml` and a checkpoint.
        layer: Block, counted from 1; 0 = input of the first block; -1 = encoder
            output, which in most encoders is the last block's output normalised.
        device: Where it runs.
        checkpoint: File in the folder; default: the first there is of
            `espnet_folder.CHECKPOINTS`.
        frame_shift_samples: Samples between two encoder frames, for front ends and
            encoders whose subsampling is not known here.
        frame_offset_samples: Likewise the centre of frame 0, in samples.

    Raises:
        TeacherError: If folder, config or checkpoint are missing, damaged, or of a
            model without an encoder of speech; if there is no such layer; or if the
            frames' places in time are not known or not as given.
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
        folder = Path(name).expanduser()
        config = read_config(spec, folder / "config.yaml")
        state = read_state(spec, find_checkpoint(spec, folder, checkpoint))
        self._parts = _load_parts(spec, config, state)
        weights = self._parts.state_dict().items()
        settings = encoder_config(config)
        if config.get("normalize") == "utterance_mvn":
            # Versions before normalised the pieces of long speech one by one.
            settings["statistics"] = "of whole utterances"
        content = weights_hash(weights, settings)
        self.id = f"espnet/{folder.resolve().name}@{content}"
        self.spec = spec
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
        if config.get("normalize") == "utterance_mvn":
            self._parts["normalize"] = UtteranceNormalizer(self._parts["normalize"])
        self._min_samples = min_samples(self._parts, self.frame_offset_samples)
        self._heard: Optional[torch.Tensor] = None
        self.layer = self._tap(layer)
        self.device = device
        self._parts.to(device).eval().requires_grad_(False)
        self.dim = self._check_frames()

    def _prepare(self, waveform: torch.Tensor) -> torch.Tensor:
        """Lengthen (S,) to at least one frame."""
        missing = max(0, self._min_samples - len(waveform))
        return torch.nn.functional.pad(waveform, (0, missing))

    @torch.inference_mode()
    def embed_batch(self, waveforms: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        """See `Teacher.embed_batch`; long speech is normalised before it is cut."""
        normalizer = self._parts["normalize"] if "normalize" in self._parts else None
        longest = int(self.segment_s * self.sample_rate)
        if not isinstance(normalizer, UtteranceNormalizer):
            return super().embed_batch(waveforms)
        embed = super().embed_batch
        found = iter(embed([w for w in waveforms if len(w) <= longest]))
        embeddings = []
        for waveform in waveforms:
            if len(waveform) <= longest:
                embeddings.append(next(found))
                continue
            with normalizer.of_whole(self._features_of_whole(waveform, longest)):
                embeddings += embed([waveform])
        return embeddings

    def _features_of_whole(self, waveform: torch.Tensor, longest: int) -> torch.Tensor:
        """Return the features of long speech, (1, T, D), for their statistics.

        A front end with weights, such as a self-supervised model, gets pieces of
        `longest` samples at most: its memory may grow with the square of the length.
        """
        front_end = self._parts["frontend"] if "frontend" in self._parts else None
        with_weights = front_end and any(True for _ in front_end.parameters())
        num_pieces = -(-len(waveform) // longest) if with_weights else 1
        speech = waveform.detach().float()[None].to(self.device)
        pieces = speech.chunk(num_pieces, dim=1)
        lengths = (torch.tensor([piece.shape[1]]) for piece in pieces)
        return torch.cat([self._features(*both)[0] for both in zip(pieces, lengths)], 1)

    def _features(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return what the front end makes of speech, (B, T, D), and lengths, (B,)."""
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
                x, lengths = self._parts["normalize"](x, lengths)
        if "preencoder" in self._parts:
            x, lengths = self._parts["preencoder"](x, lengths)
        options = {"ctc": self._parts["ctc"]} if "ctc" in self._parts else {}
        self._heard = None
        try:
            output, lengths = self._parts["encoder"](x, lengths, **options)[:2]
        except Exception as error:  # of speech too short for it, above all
            if is_fault_of_device(error):
                raise
            raise EmbeddingError(
                f"the teacher {self.spec} cannot embed {speech.shape[1]} samples "
                f"({type(error).__name__}: {error}): leave the utterance out, in an "
                "extraction by --on_error skip"
            ) from error
        embeddings = first_tensor(output) if self.layer == -1 else self._heard
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
        """Listen to a layer; return its number."""
        if layer == -1:
            return layer
        blocks = find_blocks(self._parts["encoder"])
        if blocks is None:
            raise TeacherError(
                f"teacher {self.spec}: got layer {layer}, but {self._describe()} has "
                "no numbered blocks; use layer -1, the encoder output"
            )
        layer = resolve_layer(layer, len(blocks), self.spec)

        def hear_input(block: torch.nn.Module, args: Any) -> None:
            self._heard = first_tensor(args)

        def hear_output(block: torch.nn.Module, args: Any, output: Any) -> None:
            self._heard = first_tensor(output)

        if layer == 0:
            blocks[0].register_forward_pre_hook(hear_input)
        else:
            blocks[layer - 1].register_forward_hook(hear_output)
        return layer

    def _describe(self) -> str:
        """Name the classes that decide on the frames."""
        used = (self._parts[name] for name in _PARTS if name in self._parts)
        return " + ".join(type(part).__name__ for part in used)

    def _check_frames(self) -> int:
        """Run the teacher on noise of 1 s and 3 s: refuse another shift; return D."""
        generator = torch.Generator().manual_seed(0)
        noise = 0.1 * torch.randn(3 * self.sample_rate, generator=generator)
        lengths = torch.tensor([self.sample_rate, 3 * self.sample_rate])
        try:
            embeddings, frames = self.embed(noise.expand(2, -1), lengths)
        except TeacherError:
            raise
        except Exception as error:  # whatever the model's own code raises
            raise TeacherError(
                f"teacher {self.spec}: {self._describe()} could not embed 1 s and 3 s "
                f"of noise ({type(error).__name__}: {error})"
            ) from error
        found = int(frames[1] - frames[0])
        expected = 2 * self.sample_rate / self.frame_shift_samples
        if abs(found - expected) > 1.5:
            raise TeacherError(
                f"teacher {self.spec}: got {found} frames for 2 s of speech, expected "
                f"{expected:g} at a frame shift of {self.frame_shift_samples} samples; "
                "give --teacher_conf frame_shift_samples=... and --teacher_conf "
                "frame_offset_samples=... that fit"
            )
        return embeddings.shape[2]


def _load_parts(
    spec: str, config: Dict[str, Any], state: Dict[str, torch.Tensor]
) -> torch.nn.ModuleDict:
    """Build what the embeddings need and fill it; other weights are not looked at."""
    with building(spec):
        parts = _build_parts(config, state)
    fill(spec, parts, {k: v for k, v in state.items() if k.split(".")[0] in parts})
    return parts


@contextlib.contextmanager
def building(spec: str, hint: str = "") -> Iterator[None]:
    """Build something of ESPnet in a block; say whose fault it is if that fails.

    Args:
        spec: The whole name of the teacher, for messages.
        hint: What else may be wrong if the config does not fit.

    Raises:
        TeacherError: If it cannot be built.
    """
    try:
        # Some parts print while they are built; standard output may be a data pipe.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ImportError as error:
        raise TeacherError(
            f"teacher {spec}: a package it needs cannot be imported ({error}); "
            "install it (espnet: pip install espnet)"
        ) from error
    except Exception as error:  # whatever a wrong config makes ESPnet raise
        raise TeacherError(
            f"teacher {spec}: could not build it from config.yaml "
            f"({type(error).__name__}: {error}){hint}"
        ) from error


def fill(spec: str, module: torch.nn.Module, state: Dict[str, torch.Tensor]) -> None:
    """Load weights into a module that must have these and no others.

    Args:
        spec: The whole name of the teacher, for messages.
        module: As the config says.
        state: Weights of the checkpoint, by name.

    Raises:
        TeacherError: If names or shapes differ.
    """
    own = module.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or extra or wrong:
        raise TeacherError(
            f"teacher {spec}: checkpoint and config.yaml are of different models: "
            f"{len(missing)} weights are missing, {len(extra)} too many, {len(wrong)} "
            f"of another shape, first {(missing + extra + wrong)[0]}"
        )
    module.load_state_dict(state)


def _build_parts(
    config: Dict[str, Any], state: Dict[str, torch.Tensor]
) -> torch.nn.ModuleDict:
    """Build the parts as ESPnet's tasks do, with random weights.

    The ASR task's tables hold all that the SSL, HuBERT, SLU, S2T and ST tasks have.
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
        with tempfile.TemporaryDirectory() as folder:
            stats_file = write_stand_in(folder, state["normalize.mean"])
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
        encoder.finetuning = True  # else it wants labels and gives logits
    if getattr(encoder, "ctc_trim", False):
        encoder.ctc_trim = False  # what is left of trimmed frames has no place in time
    if getattr(encoder, "interctc_use_conditioning", False):
        vocab_size, dim = len(state["ctc.ctc_lo.weight"]), encoder.output_size()
        encoder.conditioning_layer = torch.nn.Linear(vocab_size, dim)
        parts["ctc"] = CTC(vocab_size, dim)
    return parts


def write_stand_in(folder: str, mean: torch.Tensor) -> str:
    """Write statistics of GlobalMVN's size; return the file.

    The values come from the checkpoint later: the file that the config names is left
    behind when an experiment folder is copied.
    """
    path, zeros = str(Path(folder, "stats.npz")), np.zeros_like(mean.numpy())
    np.savez(path, count=1, sum=zeros, sum_square=zeros + 1)
    return path


def encoder_config(config: Dict[str, Any]) -> Dict[str, Any]:
    """Return what of the config decides on embeddings beside the weights."""
    names = [name for part in _PARTS for name in (part, f"{part}_conf")]
    relevant = {name: config.get(name) or None for name in names}
    conf = dict(relevant["normalize_conf"] or {})
    conf.pop("stats_file", None)
    return {**relevant, "normalize_conf": conf}


def sample_rate_hz(whose: str, config: Dict[str, Any]) -> int:
    """Return the front end's sample rate in Hz, given as 16000 or "16k"."""
    fs = str((config.get("frontend_conf") or {}).get("fs") or 16_000)  # as ESPnet's
    try:
        return int(float(fs[:-1]) * 1000 if fs.endswith("k") else float(fs))
    except ValueError:
        raise TeacherError(f"{whose}: frontend_conf fs: got {fs!r}, not Hz") from None

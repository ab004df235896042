"""Teachers out of Hugging Face transformers: Whisper, HuBERT, WavLM, wav2vec 2.0 ..."""

from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import torch
from torch.nn.utils.rnn import pad_sequence

from espnet_mvq.teachers.base import (
    Teacher,
    TeacherError,
    check_frames,
    resolve_layer,
    weights_hash,
)
from espnet_mvq.teachers.speech_model import check_options
from espnet_mvq.teachers.transformers_settings import (
    config_settings,
    load_whisper_features,
    one_line,
    preprocessor_of,
    whisper_features_settings,
)


def build_transformers_teacher(
    spec: str, name: str, layer: int, device: torch.device, **teacher_conf: Any
) -> Teacher:
    """Pick the class that fits the model's type.

    Args:
        spec: The whole name, for messages and the id.
        name: Name on the hub, or a local folder.
        layer: Layer number, counted from 1; 0 = input of the first block; -1 = last.
        device: Where it runs.
        **teacher_conf: Options of the class.

    Returns:
        The teacher.

    Raises:
        TeacherError: If the model is not there, of an unknown type or incomplete.
    """
    name, config = read_model_config(spec, name)
    if config.model_type not in MODEL_TYPES:
        raise TeacherError(
            f"teacher {spec}: got a model of type {config.model_type!r}, expected one "
            f"of {', '.join(MODEL_TYPES)}"
        )
    teacher_class = MODEL_TYPES[config.model_type]
    check_options(spec, teacher_class, teacher_conf)
    return teacher_class(spec, name, layer, device, config, **teacher_conf)


def read_model_config(spec: str, name: str) -> Tuple[str, Any]:
    """Read the configuration of a model.

    Args:
        spec: The whole name, for messages.
        name: Name on the hub, or a local folder.

    Returns:
        The name, `~` spelt out, and the configuration.

    Raises:
        TeacherError: If the model is not there.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise TeacherError(
            f"teacher {spec}: transformers cannot be imported ({error}); "
            "pip install 'espnet-mvq[transformers]'"
        ) from error
    if name.startswith(("/", ".", "~")):
        name = str(Path(name).expanduser())
        if not Path(name, "config.json").is_file():
            raise TeacherError(
                f"teacher {spec}: no config.json in {name}; expected the folder of a "
                "model saved by transformers"
            )
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # OSError and others, by kind of damage
        if Path(name).is_dir():
            raise TeacherError(
                f"teacher {spec}: could not read {name}/config.json "
                f"({type(error).__name__}: {one_line(error)}); expected that of a "
                "model saved by transformers, copy it again"
            ) from error
        raise TeacherError(
            f"teacher {spec}: no such model ({one_line(error)}). Without a network, "
            "give the folder of a model that was downloaded before"
        ) from error
    return name, config


class WaveModel(Teacher):
    """HuBERT, WavLM, wav2vec 2.0 and their like, which read the waveform.

    Models with layer norm in front take padded batches; those with group norm, and
    data2vec, would see the padding.

    Args:
        spec, name, device, config: As `build_transformers_teacher` has them.
        model_class: Class of transformers that loads it.
    """

    def __init__(
        self, spec: str, name: str, device: torch.device, config: Any, model_class: Any
    ):
        self._model = load_model(spec, model_class, name).to(device)
        self.device = device
        self.spec = spec
        self._normalize, self.sample_rate = preprocessor_of(spec, name, config)
        self.frame_shift_samples, receptive_field = 1, 1
        self._convolutions = list(zip(config.conv_kernel, config.conv_stride))
        for kernel, stride in self._convolutions:
            receptive_field += (kernel - 1) * self.frame_shift_samples
            self.frame_shift_samples *= stride
        self._min_samples = receptive_field
        self.frame_offset_samples = (receptive_field - 1) / 2
        check_frames(spec, self.frame_shift_samples, self.frame_offset_samples)
        self.mixes_lengths = (
            getattr(config, "feat_extract_norm", None) == "layer"
            and config.model_type in ONE_POSITIONAL_CONVOLUTION
        )
        settings = {
            **config_settings(config),
            "do_normalize": self._normalize,
            "sampling_rate": self.sample_rate,
        }
        weights = weights_hash(self._model.state_dict().items(), settings)
        self.id = f"transformers/{Path(name).name}@{weights}"

    def _prepare(self, waveform: torch.Tensor) -> torch.Tensor:
        """Normalise (S,) if the model was trained so."""
        if self._normalize:
            variance = waveform.var(unbiased=False)
            waveform = (waveform - waveform.mean()) / torch.sqrt(variance + 1e-7)
        # An utterance shorter than one window still gets its one frame.
        missing = max(0, self._min_samples - len(waveform))
        return torch.nn.functional.pad(waveform, (0, missing))

    def _run(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[Any, torch.Tensor]:
        """Return what the model puts out, and the number of frames, (B,)."""
        mask = None
        if int(speech_lengths.min()) < speech.shape[1]:
            positions = torch.arange(speech.shape[1])
            mask = (positions < speech_lengths.unsqueeze(1)).long().to(speech.device)
        frames = speech_lengths
        for kernel, stride in self._convolutions:
            frames = (frames - kernel) // stride + 1
        return self._model(speech, attention_mask=mask), frames


class WaveTeacher(WaveModel):
    """Their hidden states; only the blocks up to the layer run."""

    def __init__(
        self, spec: str, name: str, layer: int, device: torch.device, config: Any
    ):
        from transformers import AutoModel

        super().__init__(spec, name, device, config, AutoModel)
        self.layer = resolve_layer(layer, config.num_hidden_layers, spec)
        self.dim = config.hidden_size
        self._model.adapter = None  # some shorten their output by one; we are before it
        encoder = self._model.encoder
        encoder.layers = encoder.layers[: self.layer]
        if getattr(config, "do_stable_layer_norm", False):
            # It follows the last block, whose own output is what a layer means here.
            encoder.layer_norm = torch.nn.Identity()

    def _forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See `Teacher._forward`."""
        output, frames = self._run(speech, speech_lengths)
        return output.last_hidden_state, frames


class WhisperTeacher(Teacher):
    """Encoder of a Whisper model, as trained: on windows of 30 s padded with silence.

    Only the blocks up to the layer run. Longer speech is cut into windows that overlap.

    Args:
        spec, name, layer, device, config: As `build_transformers_teacher` has them.
        window_s: Length of a window in seconds. 30 is what Whisper was trained on;
            less, in multiples of a frame of 20 ms, is faster in proportion but gives
            other embeddings. 0: each
            utterance's own length, at most 30 s; batches are masked.
    """

    mixes_lengths = True

    def __init__(
        self,
        spec: str,
        name: str,
        layer: int,
        device: torch.device,
        config: Any,
        window_s: float = 30.0,
    ):
        self._encoder = _load_whisper_encoder(spec, name, config).to(device)
        self.device = device
        self.spec = spec
        self.layer = resolve_layer(layer, config.encoder_layers, spec)
        self.dim = config.d_model
        self._features = load_whisper_features(spec, name, config)
        self.sample_rate = self._features.sampling_rate
        # Two frames of the spectrogram, whose frames are centred on their start.
        self.frame_shift_samples = 2 * self._features.hop_length
        self.frame_offset_samples = 0
        self._positions = self._encoder.embed_positions.weight.detach()
        longest = len(self._positions) * self.frame_shift_samples
        frame_s = self.frame_shift_samples / self.sample_rate
        frames = round(window_s / frame_s)
        fits = abs(frames * frame_s - window_s) < 1e-9  # else the last frame is lost
        if not fits or not (frames == 0 or 3 <= frames <= len(self._positions)):
            raise TeacherError(
                f"teacher {spec}: got window_s {window_s}, expected 0 to "
                f"{longest / self.sample_rate:g} s, a multiple of {frame_s:g} s and, "
                f"but for 0, {3 * frame_s:g} s at least"
            )
        self._window_samples = frames * self.frame_shift_samples
        self.segment_s = (self._window_samples or longest) / self.sample_rate
        self.overlap_s = min(self.overlap_s, self.segment_s / 8)
        settings = {
            **config_settings(config),
            "features": whisper_features_settings(self._features),
        }
        weights = weights_hash(self._encoder.state_dict().items(), settings)
        self.id = f"transformers/{Path(name).name}@{weights}"
        if self._window_samples != longest:
            self.id += f",window_s={window_s:g}"
        if self.layer < config.encoder_layers:
            self._encoder.layers = self._encoder.layers[: self.layer]
            self._encoder.layer_norm = torch.nn.Identity()  # it follows the last block
        self._mask: Optional[torch.Tensor] = None  # frames of speech, bool, (B, T)
        self._encoder.conv2.register_forward_pre_hook(self._silence_padding)
        for block in self._encoder.layers:
            block.register_forward_pre_hook(self._mask_attention, with_kwargs=True)

    def _forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See `Teacher._forward`."""
        shift = self.frame_shift_samples
        frames = -(-speech_lengths // shift)
        windows = [self._window_samples // shift or n for n in frames.tolist()]
        rows = zip(speech.cpu(), speech_lengths.tolist(), windows)
        features = [self._log_mel(row[:length], size) for row, length, size in rows]
        num_frames = max(windows)
        self._mask = None
        if min(windows) < num_frames:
            filled = torch.arange(num_frames) < torch.tensor(windows).unsqueeze(1)
            self._mask = filled.to(self.device)
        # The encoder insists on as many frames as it has positions.
        self._encoder.config.max_source_positions = num_frames
        self._encoder.embed_positions.num_embeddings = num_frames
        self._encoder.embed_positions.weight.data = self._positions[:num_frames]
        padded = pad_sequence(features, batch_first=True).transpose(1, 2)
        output = self._encoder(padded.to(self.device))
        return output.last_hidden_state, frames

    def _log_mel(self, waveform: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Compute the input of the encoder, (2 * num_frames, mel bins)."""
        # In float32 on every device: autocast would lose quiet bins on a CPU.
        with torch.autocast("cpu", enabled=False):
            features = self._features(
                waveform.numpy(),
                sampling_rate=self.sample_rate,
                padding="max_length",
                max_length=num_frames * self.frame_shift_samples,
                return_tensors="pt",
            )
        return features.input_features[0].T

    def _silence_padding(self, module: torch.nn.Module, args: Any) -> Any:
        """Give the second convolution zeros where an utterance alone has its end."""
        if self._mask is None:
            return None
        mask = self._mask.repeat_interleave(2, dim=1).unsqueeze(1)
        return (args[0] * mask, *args[1:])

    def _mask_attention(
        self, module: torch.nn.Module, args: Any, kwargs: Dict[str, Any]
    ) -> Any:
        """Let no frame of speech attend to padding."""
        if self._mask is None:
            return None
        dtype = self.dtype if len(args) == 0 else args[0].dtype
        mask = torch.zeros(self._mask.shape, dtype=dtype, device=self.device)
        mask = mask.masked_fill(~self._mask, torch.finfo(dtype).min)[:, None, None]
        if len(args) > 1:
            return (args[0], mask, *args[2:]), kwargs
        return args, {**kwargs, "attention_mask": mask}


MODEL_TYPES = {
    "whisper": WhisperTeacher,
    "hubert": WaveTeacher,
    "wav2vec2": WaveTeacher,
    "wavlm": WaveTeacher,
    "data2vec-audio": WaveTeacher,
    "unispeech-sat": WaveTeacher,
}

# One convolution for positions, on hidden states whose padding is zero; data2vec stacks
# several, the second of which sees what the first made of the padding.
ONE_POSITIONAL_CONVOLUTION = ("hubert", "wav2vec2", "wavlm", "unispeech-sat")


def _load_whisper_encoder(spec: str, name: str, config: Any) -> torch.nn.Module:
    """Load the encoder from a whole Whisper model or from an encoder alone."""
    from transformers import WhisperModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if "WhisperEncoder" in (config.architectures or []):
        return load_model(spec, WhisperEncoder, name)
    return load_model(spec, WhisperModel, name).get_encoder()


def load_model(spec: str, model_class: Any, name: str) -> torch.nn.Module:
    """Load weights as float32, in eval mode; refuse a model with missing weights."""
    kwargs: Dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    try:
        model, info = model_class.from_pretrained(name, **kwargs)
    except Exception as error:  # OSError, safetensors' and others, by kind of damage
        raise TeacherError(
            f"teacher {spec}: could not load its weights "
            f"({type(error).__name__}: {one_line(error)})"
        ) from error
    # A masking vector is for pre-training only and often left out of checkpoints.
    missing = [key for key in info["missing_keys"] if "masked_spec_embed" not in key]
    if missing:
        raise TeacherError(
            f"teacher {spec}: {len(missing)} weights are missing in the checkpoint, "
            f"first {sorted(missing)[0]}; expected a whole {model_class.__name__}"
        )
    model.config.return_dict = True  # whatever the file says: results have names
    return model.eval().requires_grad_(False)

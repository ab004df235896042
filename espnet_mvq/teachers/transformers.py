"""Teachers out of Hugging Face transformers: Whisper, HuBERT, WavLM, wav2vec 2.0 ..."""

from pathlib import Path
from typing import Any, Dict, Tuple

import torch

from espnet_mvq.teachers.base import (
    Teacher,
    TeacherError,
    pad_embeddings,
    resolve_layer,
    weights_hash,
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
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"teacher {spec}: no such model ({_first_line(error)}). Without a network, "
            "give the folder of a model that was downloaded before"
        ) from error
    if config.model_type not in MODEL_TYPES:
        raise TeacherError(
            f"teacher {spec}: got a model of type {config.model_type!r}, expected one "
            f"of {', '.join(MODEL_TYPES)}"
        )
    teacher_class = MODEL_TYPES[config.model_type]
    return teacher_class(spec, name, layer, device, config, **teacher_conf)


class WaveTeacher(Teacher):
    """HuBERT, WavLM, wav2vec 2.0 and their like, which read the waveform.

    Utterances run one by one, so that no model sees the padding of a batch.
    """

    def __init__(
        self, spec: str, name: str, layer: int, device: torch.device, config: Any
    ):
        from transformers import AutoModel

        self._model = _load_model(spec, AutoModel, name).to(device)
        self._device = device
        self.spec = spec
        self.layer = resolve_layer(layer, config.num_hidden_layers, spec)
        self.dim = config.hidden_size
        self._normalize, self.sample_rate = _preprocessor(name, config)
        self.frame_shift_samples, receptive_field = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride):
            receptive_field += (kernel - 1) * self.frame_shift_samples
            self.frame_shift_samples *= stride
        self._min_samples = receptive_field
        self.frame_offset_samples = (receptive_field - 1) / 2
        weights = weights_hash(self._model.state_dict().items())
        self.id = f"transformers/{Path(name).name}@{weights}"

    @torch.inference_mode()
    def embed(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See `Teacher.embed`."""
        embeddings = []
        for waveform, length in zip(speech, speech_lengths.tolist()):
            waveform = waveform[:length].to(self._device, torch.float32)
            if self._normalize:
                variance = waveform.var(unbiased=False)
                waveform = (waveform - waveform.mean()) / torch.sqrt(variance + 1e-7)
            # An utterance shorter than one window still gets its one frame.
            missing = max(0, self._min_samples - length)
            waveform = torch.nn.functional.pad(waveform, (0, missing))
            output = self._model(waveform.unsqueeze(0), output_hidden_states=True)
            embeddings.append(output.hidden_states[self.layer][0])
        return pad_embeddings(embeddings)


class WhisperTeacher(Teacher):
    """Encoder of a Whisper model, as trained: on windows of 30 s padded with silence.

    Longer speech is cut into windows of 30 s whose embeddings are joined.

    Args:
        spec, name, layer, device, config: As `build_transformers_teacher` has them.
        window_s: Length of a window in seconds. 30 is what Whisper was trained on;
            less is faster in proportion but gives other embeddings. 0: each
            utterance's own length, at most 30 s.
    """

    def __init__(
        self,
        spec: str,
        name: str,
        layer: int,
        device: torch.device,
        config: Any,
        window_s: float = 30.0,
    ):
        from transformers import AutoFeatureExtractor, WhisperFeatureExtractor

        self._encoder = _load_whisper_encoder(spec, name, config).to(device)
        self._device = device
        self.spec = spec
        self.layer = resolve_layer(layer, config.encoder_layers, spec)
        self.dim = config.d_model
        if Path(name).is_dir() and not Path(name, "preprocessor_config.json").is_file():
            self._features = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        else:
            self._features = AutoFeatureExtractor.from_pretrained(name)
        self.sample_rate = self._features.sampling_rate
        # Two frames of the spectrogram, whose frames are centred on their start.
        self.frame_shift_samples = 2 * self._features.hop_length
        self.frame_offset_samples = 0
        self._positions = self._encoder.embed_positions.weight.detach()
        longest = len(self._positions) * self.frame_shift_samples
        self._window_samples = int(window_s * self.sample_rate)
        if not 0 <= self._window_samples <= longest:
            raise TeacherError(
                f"teacher {spec}: got window_s {window_s}, expected 0 to "
                f"{longest / self.sample_rate:g} s"
            )
        self._longest_samples = self._window_samples or longest
        weights = weights_hash(self._encoder.state_dict().items())
        self.id = f"transformers/{Path(name).name}@{weights}"
        if self._window_samples != longest:
            self.id += f",window_s={window_s:g}"

    @torch.inference_mode()
    def embed(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See `Teacher.embed`."""
        embeddings = []
        for waveform, length in zip(speech, speech_lengths.tolist()):
            windows = waveform[:length].cpu().float().split(self._longest_samples)
            embeddings.append(torch.cat([self._embed_window(w) for w in windows]))
        return pad_embeddings(embeddings)

    def _embed_window(self, waveform: torch.Tensor) -> torch.Tensor:
        """Embed at most one window of speech (S,) as (T, D), T = ceil(S / shift)."""
        shift = self.frame_shift_samples
        num_frames = -(-len(waveform) // shift)
        window_frames = self._window_samples // shift or num_frames
        features = self._features(
            waveform.numpy(),
            sampling_rate=self.sample_rate,
            padding="max_length",
            max_length=window_frames * shift,
            return_tensors="pt",
        ).input_features.to(self._device)
        # The encoder insists on as many frames as it has positions.
        self._encoder.config.max_source_positions = window_frames
        self._encoder.embed_positions.num_embeddings = window_frames
        self._encoder.embed_positions.weight.data = self._positions[:window_frames]
        output = self._encoder(features, output_hidden_states=True)
        return output.hidden_states[self.layer][0, :num_frames]


MODEL_TYPES = {
    "whisper": WhisperTeacher,
    "hubert": WaveTeacher,
    "wav2vec2": WaveTeacher,
    "wavlm": WaveTeacher,
    "data2vec-audio": WaveTeacher,
    "unispeech-sat": WaveTeacher,
}


def _preprocessor(name: str, config: Any) -> Tuple[bool, int]:
    """Return whether waveforms are normalised, and the sample rate in Hz."""
    from transformers import AutoFeatureExtractor

    if Path(name).is_dir() and not Path(name, "preprocessor_config.json").is_file():
        # The rule these models were trained by; data2vec knows layer norm alone.
        return getattr(config, "feat_extract_norm", "layer") == "layer", 16_000
    extractor = AutoFeatureExtractor.from_pretrained(name)
    return bool(extractor.do_normalize), extractor.sampling_rate


def _load_whisper_encoder(spec: str, name: str, config: Any) -> torch.nn.Module:
    """Load the encoder from a whole Whisper model or from an encoder alone."""
    from transformers import WhisperModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if "WhisperEncoder" in (config.architectures or []):
        return _load_model(spec, WhisperEncoder, name)
    return _load_model(spec, WhisperModel, name).get_encoder()


def _load_model(spec: str, model_class: Any, name: str) -> torch.nn.Module:
    """Load weights as float32, in eval mode; refuse a model with missing weights."""
    kwargs: Dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    try:
        model, info = model_class.from_pretrained(name, **kwargs)
    except Exception as error:  # OSError, safetensors' and others, by kind of damage
        raise TeacherError(
            f"teacher {spec}: could not load its weights "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error
    # A masking vector is for pre-training only and often left out of checkpoints.
    missing = [key for key in info["missing_keys"] if "masked_spec_embed" not in key]
    if missing:
        raise TeacherError(
            f"teacher {spec}: {len(missing)} weights are missing in the checkpoint, "
            f"first {sorted(missing)[0]}; expected a whole {model_class.__name__}"
        )
    return model.eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip().splitlines() or [""])[0]

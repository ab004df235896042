"""Teachers of Hugging Face transformers: the encoder of Whisper."""

from typing import Any, Dict, Optional, Tuple

import torch
from torch.nn.utils.rnn import pad_sequence

from espnet_mvq.teachers.base import Teacher, TeacherError, resolve_layer
from espnet_mvq.teachers.model_id import (
    transformers_settings,
    whisper_features_settings,
)
from espnet_mvq.teachers.transformers import (
    has_no_preprocessor,
    load_extractor,
    load_model,
    model_id,
    sample_rate_of,
)


class WhisperTeacher(Teacher):
    """Encoder of a Whisper model, on windows of 30 s padded with silence as trained.

    The blocks above the layer are removed. Longer speech is cut into overlapping
    windows.

    Args:
        spec, name, layer, device, config: See `build_transformers_teacher`.
        window_s: Length of a window in seconds, a multiple of the frame of 20 ms.
            Whisper was trained with 30; shorter windows are faster in proportion but
            give other embeddings. 0: each utterance's own length, at most 30 s; batches
            are masked.
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
        # Each encoder frame covers two spectrogram frames, centred on their start.
        self.frame_shift_samples = 2 * self._features.hop_length
        self.frame_offset_samples = 0
        self._positions = self._encoder.embed_positions.weight.detach()
        longest = len(self._positions) * self.frame_shift_samples
        frame_s = self.frame_shift_samples / self.sample_rate
        frames = round(window_s / frame_s)
        # If a window is not a multiple of a frame, its last frame is lost.
        fits = abs(frames * frame_s - window_s) < 1e-9
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
            **transformers_settings(config),
            "features": whisper_features_settings(self._features),
        }
        self.id = model_id(name, self._encoder, settings)
        if self._window_samples != longest:
            self.id += f",window_s={window_s:g}"
        if self.layer < config.encoder_layers:
            self._encoder.layers = self._encoder.layers[: self.layer]
            self._encoder.layer_norm = torch.nn.Identity()  # it follows the last block
        self.blocks = self._encoder.layers
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
        # The encoder accepts only as many frames as it has positions.
        self._encoder.config.max_source_positions = num_frames
        self._encoder.embed_positions.num_embeddings = num_frames
        self._encoder.embed_positions.weight.data = self._positions[:num_frames]
        padded = pad_sequence(features, batch_first=True).transpose(1, 2)
        output = self._encoder(padded.to(self.device))
        return output.last_hidden_state, frames

    def _log_mel(self, waveform: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Compute the log-mel spectrogram, (2 * num_frames, mel bins)."""
        # In float32: on a CPU, autocast would lose quiet bins.
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
        """Zero the padding before the second convolution, as for an utterance alone."""
        if self._mask is None:
            return None
        mask = self._mask.repeat_interleave(2, dim=1).unsqueeze(1)
        return (args[0] * mask, *args[1:])

    def _mask_attention(
        self, module: torch.nn.Module, args: Any, kwargs: Dict[str, Any]
    ) -> Any:
        """Mask padding in the attention of a block."""
        if self._mask is None:
            return None
        dtype = self.dtype if len(args) == 0 else args[0].dtype
        mask = torch.zeros(self._mask.shape, dtype=dtype, device=self.device)
        mask = mask.masked_fill(~self._mask, torch.finfo(dtype).min)[:, None, None]
        if len(args) > 1:
            return (args[0], mask, *args[2:]), kwargs
        return args, {**kwargs, "attention_mask": mask}


def _load_whisper_encoder(spec: str, name: str, config: Any) -> torch.nn.Module:
    """Load the encoder, from a whole Whisper model or a saved encoder."""
    from transformers import WhisperModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if "WhisperEncoder" in (config.architectures or []):
        return load_model(spec, WhisperEncoder, name)
    return load_model(spec, WhisperModel, name).get_encoder()


def load_whisper_features(spec: str, name: str, config: Any) -> Any:
    """Load the feature extractor of a Whisper model; without files, OpenAI's.

    Raises:
        TeacherError: If its files cannot be read or do not fit the model.
    """
    from transformers import WhisperFeatureExtractor

    if has_no_preprocessor(name):
        return WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    features = load_extractor(spec, name)
    if not isinstance(features, WhisperFeatureExtractor):
        raise TeacherError(
            f"teacher {spec}: got a {type(features).__name__} as its preprocessor, "
            "expected a WhisperFeatureExtractor"
        )
    if features.feature_size != config.num_mel_bins:
        raise TeacherError(
            f"teacher {spec}: its preprocessor makes {features.feature_size} mel bins "
            f"(feature_size), expected {config.num_mel_bins} as the model has "
            "(num_mel_bins)"
        )
    sample_rate_of(spec, features)
    return features

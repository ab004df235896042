"""Teachers of Hugging Face transformers: HuBERT, WavLM, wav2vec 2.0 ..., Whisper."""

from pathlib import Path
from typing import Any, Dict, Tuple

import torch

from espnet_mvq.teachers.base import Teacher, TeacherError, check_frames, resolve_layer
from espnet_mvq.teachers.build import check_options, load_factory
from espnet_mvq.teachers.model_id import transformers_settings, weights_hash
from espnet_mvq.teachers.speech_model import loading

# Model type -> file and class, see `build.BACKENDS`
MODEL_TYPES = {
    "whisper": "whisper.WhisperTeacher",
    "hubert": "transformers.WaveTeacher",
    "wav2vec2": "transformers.WaveTeacher",
    "wavlm": "transformers.WaveTeacher",
    "data2vec-audio": "transformers.WaveTeacher",
    "unispeech-sat": "transformers.WaveTeacher",
}
# One convolution for positions, on hidden states whose padding is zero; data2vec stacks
# several, and the first one fills the padding with values that the second one reads.
ONE_POSITIONAL_CONVOLUTION = ("hubert", "wav2vec2", "wavlm", "unispeech-sat")


def build_transformers_teacher(
    spec: str, name: str, layer: int, device: torch.device, **teacher_conf: Any
) -> Teacher:
    """Build the teacher of a model's type.

    Args:
        spec: The whole name, for messages and the id.
        name: Name on the hub, or a local folder.
        layer: Layer number, counted from 1; 0 = input of the first block; -1 = last.
        device: Device of the model.
        **teacher_conf: Options of the class.

    Returns:
        The teacher.

    Raises:
        TeacherError: If the model does not exist, is incomplete, or of an unknown type.
    """
    name, config = read_model_config(spec, name)
    if config.model_type not in MODEL_TYPES:
        raise TeacherError(
            f"teacher {spec}: got a model of type {config.model_type!r}, expected one "
            f"of {', '.join(MODEL_TYPES)}"
        )
    teacher_class = load_factory(MODEL_TYPES[config.model_type])
    check_options(spec, teacher_class, teacher_conf)
    return teacher_class(spec, name, layer, device, config, **teacher_conf)


def read_model_config(spec: str, name: str) -> Tuple[str, Any]:
    """Read the configuration of a model.

    Args:
        spec: The whole name, for messages.
        name: Name on the hub, or a local folder.

    Returns:
        The name, `~` expanded, and the configuration.

    Raises:
        TeacherError: If there is no such model.
    """
    with loading(spec, "transformers cannot be imported"):
        from transformers import AutoConfig
    if name.startswith(("/", ".", "~")):
        name = str(Path(name).expanduser())
        if not Path(name, "config.json").is_file():
            raise TeacherError(
                f"teacher {spec}: no config.json in {name}; expected the folder of a "
                "model saved by transformers"
            )
    failure = "no such model"
    remedy = (
        ". Without a network, give the folder of a model that was downloaded before"
    )
    if Path(name).is_dir():
        failure = f"could not read {name}/config.json"
        remedy = "; expected that of a model saved by transformers, copy it again"
    with loading(spec, failure, remedy):
        config = AutoConfig.from_pretrained(name)
    return name, config


class WaveModel(Teacher):
    """Models that read the waveform: HuBERT, WavLM, wav2vec 2.0 and relatives.

    Models whose front end has layer norm run in padded batches. In those with group
    norm, and in data2vec, padding would change the results.

    Args:
        spec, name, device, config: See `build_transformers_teacher`.
        model_class: Class of transformers that loads the model.
    """

    def __init__(
        self, spec: str, name: str, device: torch.device, config: Any, model_class: Any
    ):
        self._model = load_model(spec, model_class, name).to(device)
        self.device = device
        self.spec = spec
        self._normalize, self.sample_rate = read_preprocessor(spec, name, config)
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
            **transformers_settings(config),
            "do_normalize": self._normalize,
            "sampling_rate": self.sample_rate,
        }
        self.id = model_id(name, self._model, settings)

    def _prepare(self, waveform: torch.Tensor) -> torch.Tensor:
        """Normalise (S,) if the model was trained on normalised waveforms."""
        if self._normalize:
            variance = waveform.var(unbiased=False)
            waveform = (waveform - waveform.mean()) / torch.sqrt(variance + 1e-7)
        # Pad an utterance shorter than one window, so that it has a frame.
        missing = max(0, self._min_samples - len(waveform))
        return torch.nn.functional.pad(waveform, (0, missing))

    def _run(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[Any, torch.Tensor]:
        """Return the output of the model, and the number of frames, (B,)."""
        mask = None
        if int(speech_lengths.min()) < speech.shape[1]:
            positions = torch.arange(speech.shape[1])
            mask = (positions < speech_lengths.unsqueeze(1)).long().to(speech.device)
        frames = speech_lengths
        for kernel, stride in self._convolutions:
            frames = (frames - kernel) // stride + 1
        return self._model(speech, attention_mask=mask), frames


class WaveTeacher(WaveModel):
    """Hidden states of a layer; the blocks above it are removed."""

    def __init__(
        self, spec: str, name: str, layer: int, device: torch.device, config: Any
    ):
        from transformers import AutoModel

        super().__init__(spec, name, device, config, AutoModel)
        self.layer = resolve_layer(layer, config.num_hidden_layers, spec)
        self.dim = config.hidden_size
        self._model.adapter = None  # it would shorten the output
        encoder = self._model.encoder
        encoder.layers = encoder.layers[: self.layer]
        if getattr(config, "do_stable_layer_norm", False):
            # It follows the last block; a layer is the output of its block alone.
            encoder.layer_norm = torch.nn.Identity()
        self.blocks = encoder.layers

    def _forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See `Teacher._forward`."""
        output, frames = self._run(speech, speech_lengths)
        return output.last_hidden_state, frames


def load_model(spec: str, model_class: Any, name: str) -> torch.nn.Module:
    """Load weights as float32, in eval mode; refuse a model with missing weights."""
    kwargs: Dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    with loading(spec, "could not load its weights"):
        model, info = model_class.from_pretrained(name, **kwargs)
    # The masking vector is used in pre-training only; many checkpoints have none.
    missing = [key for key in info["missing_keys"] if "masked_spec_embed" not in key]
    if missing:
        raise TeacherError(
            f"teacher {spec}: {len(missing)} weights are missing in the checkpoint, "
            f"first {sorted(missing)[0]}; expected a whole {model_class.__name__}"
        )
    model.config.return_dict = True  # results have names
    return model.eval().requires_grad_(False)


def model_id(name: str, model: torch.nn.Module, settings: Dict[str, Any]) -> str:
    """Return the id of a model: its name, and a hash of weights and settings."""
    weights = weights_hash(model.state_dict().items(), settings)
    return f"transformers/{Path(name).name}@{weights}"


def read_preprocessor(spec: str, name: str, config: Any) -> Tuple[bool, int]:
    """Return if waveforms are normalised, and the sample rate in Hz.

    Raises:
        TeacherError: If the files of the preprocessor cannot be read.
    """
    if has_no_preprocessor(name):
        # Rule of the original training; data2vec has layer norm only.
        return getattr(config, "feat_extract_norm", "layer") == "layer", 16_000
    extractor = load_extractor(spec, name)
    normalize = getattr(extractor, "do_normalize", None)
    if not isinstance(normalize, bool):
        raise TeacherError(
            f"teacher {spec}: its preprocessor, a {type(extractor).__name__}, has "
            f"do_normalize {normalize!r}, expected true or false"
        )
    return normalize, sample_rate_of(spec, extractor)


def has_no_preprocessor(name: str) -> bool:
    """Whether a name is a local folder with a model but no feature extractor."""
    folder = Path(name)
    if not folder.is_dir() or (folder / "preprocessor_config.json").is_file():
        return False
    processor = folder / "processor_config.json"
    # The file may describe a tokenizer only.
    return not processor.is_file() or "feature_extractor" not in processor.read_text()


def load_extractor(spec: str, name: str) -> Any:
    """Load a model's feature extractor."""
    from transformers import AutoFeatureExtractor

    remedy = (
        "; expected preprocessor_config.json or processor_config.json as transformers "
        "saves them"
    )
    with loading(spec, "could not read its preprocessor", remedy):
        return AutoFeatureExtractor.from_pretrained(name)


def sample_rate_of(spec: str, extractor: Any) -> int:
    """Return the sample rate of a feature extractor."""
    rate = extractor.sampling_rate
    if not isinstance(rate, int) or rate <= 0:
        raise TeacherError(
            f"teacher {spec}: its preprocessor has sampling_rate {rate!r}, expected Hz"
        )
    return rate

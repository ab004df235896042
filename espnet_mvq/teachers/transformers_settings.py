"""Settings of transformers' models that decide on results beside the weights.

Teacher ids are hashes of weights and of these. Settings that show in the names and
shapes of weights, and those of training alone, are left out: a model that is saved
again, by another version too, keeps its id.
"""

from pathlib import Path
from typing import Any, Dict, Tuple

from espnet_mvq.teachers.base import TeacherError

_WAVE = (
    "conv_stride",
    "do_stable_layer_norm",
    "feat_extract_activation",
    "feat_extract_norm",
    "hidden_act",
    "layer_norm_eps",
    "max_bucket_distance",
    "num_attention_heads",
)
_OF_CONFIG = {"whisper": ("activation_function", "encoder_attention_heads")}
_OF_WHISPER_FEATURES = (
    "dither",
    "feature_size",
    "hop_length",
    "n_fft",
    "padding_value",
    "sampling_rate",
)
_MAX_TEXT = 300  # characters of another program's error
# Words, cases, digits and punctuation: what tokenizers treat unlike each other
_PROBE = "The 5 boxing wizards, isn't it? JUMP  quickly - äöü ñ ."


def config_settings(config: Any) -> Dict[str, Any]:
    """Return the settings of a model's configuration that decide on its layers."""
    names = _OF_CONFIG.get(config.model_type, _WAVE)
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def whisper_features_settings(features: Any) -> Dict[str, Any]:
    """Return the settings of what makes spectrograms for Whisper."""
    return {name: getattr(features, name, None) for name in _OF_WHISPER_FEATURES}


def tokenizer_settings(tokenizer: Any) -> Dict[str, Any]:
    """Return the vocabulary of a tokenizer, and the labels of a text of all kinds."""
    labels = {}
    for text in (_PROBE, _PROBE.upper(), _PROBE.lower()):
        labels[text] = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
    return {"vocabulary": tokenizer.get_vocab(), "labels": labels}


def preprocessor_of(spec: str, name: str, config: Any) -> Tuple[bool, int]:
    """Return whether waveforms are normalised, and the sample rate in Hz.

    Raises:
        TeacherError: If the model's files do not say so in a way that can be read.
    """
    if _has_no_preprocessor(name):
        # The rule these models were trained by; data2vec knows layer norm alone.
        return getattr(config, "feat_extract_norm", "layer") == "layer", 16_000
    extractor = _load_extractor(spec, name)
    normalize = getattr(extractor, "do_normalize", None)
    if not isinstance(normalize, bool):
        raise TeacherError(
            f"teacher {spec}: its preprocessor, a {type(extractor).__name__}, has "
            f"do_normalize {normalize!r}, expected true or false"
        )
    return normalize, _sample_rate_hz(spec, extractor)


def load_whisper_features(spec: str, name: str, config: Any) -> Any:
    """Load what makes spectrograms for Whisper; a bare model folder has OpenAI's.

    Raises:
        TeacherError: If the model's files do not say it, or do not fit the model.
    """
    from transformers import WhisperFeatureExtractor

    if _has_no_preprocessor(name):
        return WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    features = _load_extractor(spec, name)
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
    _sample_rate_hz(spec, features)
    return features


def _has_no_preprocessor(name: str) -> bool:
    """Say whether a name is a local folder with the model alone."""
    folder = Path(name)
    if not folder.is_dir() or (folder / "preprocessor_config.json").is_file():
        return False
    processor = folder / "processor_config.json"
    # That of a tokenizer alone has nothing about features.
    return not processor.is_file() or "feature_extractor" not in processor.read_text()


def _load_extractor(spec: str, name: str) -> Any:
    """Load a model's feature extractor."""
    from transformers import AutoFeatureExtractor

    try:
        return AutoFeatureExtractor.from_pretrained(name)
    except Exception as error:  # OSError and others, by kind of damage
        raise TeacherError(
            f"teacher {spec}: could not read its preprocessor "
            f"({type(error).__name__}: {one_line(error)}); expected "
            "preprocessor_config.json or processor_config.json as transformers saves "
            "them"
        ) from error


def _sample_rate_hz(spec: str, extractor: Any) -> int:
    """Return the sample rate of a feature extractor."""
    rate = extractor.sampling_rate
    if not isinstance(rate, int) or rate <= 0:
        raise TeacherError(
            f"teacher {spec}: its preprocessor has sampling_rate {rate!r}, expected Hz"
        )
    return rate


def one_line(error: Exception) -> str:
    """Return the text of an error, cut short, in one line."""
    words = " ".join(str(error).split())
    return words if len(words) <= _MAX_TEXT else f"{words[:_MAX_TEXT]}..."

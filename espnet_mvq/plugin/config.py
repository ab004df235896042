"""Options of `model_conf: mvq_conf:`."""

import math
import re
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple, Union

from espnet_mvq.distillation import (
    EMBEDDING_LOSSES,
    HEADS,
    Mask,
    Weighting,
    WeightSchedule,
    build_weighting,
)
from espnet_mvq.indexes.metadata import LEVELS
from espnet_mvq.options import check_options, check_ranges

# Names of our data in ESPnet's batches: one of these, or one of these, "_" and a word
DATA_NAME = "codebook_indexes"
EMBEDDINGS_NAME = "embeddings"
POSTERIORS_NAME = "posteriors"
# Name of a target whose teacher runs in training; it has no data.
TEACHER_NAME = "teacher"
# Data with the teacher's task loss, for AdaKD
TEACHER_LOSS_NAME = "teacher_loss"
# Data with a flag for utterances without a text of their own
UNLABELLED_NAME = "unlabelled"
# Options of the whole of `mvq_conf`, not of one target
_NOT_OF_TARGETS = ("targets", "weighting", "mask")
CODEBOOKS = "codebooks"
POSTERIORS = "posteriors"
LOSSES = (CODEBOOKS, *EMBEDDING_LOSSES, POSTERIORS)
# Losses by kind of target
_LOSSES_OF = {
    DATA_NAME: (CODEBOOKS, *EMBEDDING_LOSSES),
    EMBEDDINGS_NAME: tuple(EMBEDDING_LOSSES),
    POSTERIORS_NAME: (POSTERIORS,),
    TEACHER_NAME: tuple(EMBEDDING_LOSSES),
}
HEAD_INITS = ("random", "quantizer")
_CHOICES = {"loss": LOSSES, "head": HEADS, "head_init": HEAD_INITS, "level": LEVELS}
_RANGES = {
    "weight": (0, math.inf),
    "head_hidden_size": (1, math.inf),
    "label_smoothing": (0, 1),
    "soft_target_temperature": (0, math.inf),
    "embedding_weight": (0, math.inf),
    "temperature": (1, math.inf),
    "tolerance_frames": (0, math.inf),
    "chance_warning_updates": (0, math.inf),
    "num_codebooks": (1, math.inf),
    "codebook_size": (2, math.inf),
    "dim": (1, math.inf),
}


@dataclass
class MVQConfig:
    """Options of one target: a teacher's layer in a student's layer.

    Attributes:
        loss: codebooks: the student predicts codebook indexes, the MVQ loss. l1, l2 or
            cosine: a projection of the student comes near the teacher's embeddings:
            stored ones (data named embeddings), those that codebook indexes stand for
            (needs `quantizer`), or those of a `teacher` that runs in training.
            posteriors: the student's CTC output comes near that of a CTC teacher, from
            data named posteriors; `layer` is -1, and nothing is added to the model.
        weight: Weight of this loss beside the task's own loss.
        schedule: How the weight changes over training: attributes of
            `espnet_mvq.distillation.WeightSchedule`, as `{warmup_updates: 1000}`. An
            update is a batch that was trained on.
        layer: Student layer that predicts, counted from 1; -1 = encoder output; or the
            dotted path of a submodule of the encoder.
        head: independent (each index on its own) or joint (from those before it).
        head_hidden_size: Units of the joint head.
        head_init: random; or quantizer: the independent head starts as the classifier
            that reads the indexes off the teacher's own embeddings, for a student that
            starts as its own teacher (DeCoR); needs `quantizer`.
        label_smoothing: Share of the target that is spread over all values, 0 to 1.
        soft_target_temperature: More than 0: entries near the stored one are targets
            too (see `soft_target_table`); needs `quantizer`.
        embedding_weight: Weight of the relative squared error of the expected
            embedding; needs `quantizer`.
        temperature: Temperature of both distributions in posterior KD, 1 or more; the
            loss is multiplied by its square.
        quantizer: File of the quantizer that the indexes were made with.
        teacher: Teacher that runs in each training step, as `build_teacher` takes it,
            for embedding losses.
        teacher_layer: Its layer, counted from 1; -1 = the last.
        teacher_conf: Options of its back end, and `dtype` and `batch_s`.
        delay_s: Seconds by which the student may lag behind the teacher.
        tolerance_frames: Teacher frames by which an utterance's indexes may be longer
            or shorter than its speech. With a larger difference the utterance is left
            out of the MVQ loss.
        chance_warning_updates: Updates after which a head that is still at chance level
            gives a warning; 0 = never.
        speech_is_padded: Whether the preprocessor pads the end of the speech, as that
            of the s2t tasks does, so that indexes may be shorter. Filled in.
        student_frame_shift_samples: Samples between student frames. None: from the
            front end and the encoder's subsampling.
        student_frame_offset_samples: Centre of student frame 0. None: likewise.
        num_codebooks: Indexes per teacher frame, N. This and all below None: from the
            metadata beside the training set's codebook_indexes.scp.
        codebook_size: Values an index can take, K.
        sample_rate: Sample rate of the teacher's speech, in Hz.
        frame_shift_samples: Samples between teacher frames.
        frame_offset_samples: Centre of teacher frame 0, in samples.
        quantizer_id: Content id of the quantizer.
        teacher_id: Teacher and layer of the data; with others no training is resumed.
        dim: Channels D of the embeddings.
        token_list: Tokens of the posteriors.
        level: frame, or utterance: one index or embedding for each utterance, which
            the mean of the student layer's frames predicts (DeCoR).
    """

    loss: str = CODEBOOKS
    weight: float = 1.0
    schedule: Optional[dict] = field(default_factory=dict)
    layer: Union[int, str] = -1
    head: str = "independent"
    head_hidden_size: int = 512
    head_init: str = "random"
    label_smoothing: float = 0.0
    soft_target_temperature: float = 0.0
    embedding_weight: float = 0.0
    temperature: float = 1.0
    quantizer: Optional[str] = None
    teacher: Optional[str] = None
    teacher_layer: int = -1
    teacher_conf: Optional[dict] = field(default_factory=dict)
    delay_s: float = 0.0
    tolerance_frames: int = 3
    chance_warning_updates: int = 1000
    speech_is_padded: bool = False
    student_frame_shift_samples: Optional[float] = None
    student_frame_offset_samples: Optional[float] = None
    num_codebooks: Optional[int] = None
    codebook_size: Optional[int] = None
    sample_rate: Optional[int] = None
    frame_shift_samples: Optional[float] = None
    frame_offset_samples: Optional[float] = None
    quantizer_id: Optional[str] = None
    teacher_id: Optional[str] = None
    dim: Optional[int] = None
    token_list: Optional[list] = None
    level: str = "frame"

    @classmethod
    def from_dict(cls, conf: Dict[str, Any], name: str = DATA_NAME) -> "MVQConfig":
        """Build from yaml.

        Args:
            conf: Options of the target.
            name: Name of the target.

        Raises:
            ValueError: If an option is unknown, missing or has a bad value.
        """
        check_options("mvq_conf", cls, conf)
        config = cls(**conf)
        config._check_choices()
        config._check_source(name)
        missing = [
            option
            for option in from_metadata(name, config.loss)
            if getattr(config, option) is None
        ]
        if missing:
            raise ValueError(
                f"mvq_conf: {', '.join(missing)} missing. They are taken from the "
                "metadata when training runs through 'python3 -m espnet_mvq.run' with "
                "data of a teacher (type mvq_ark) in "
                "train_data_path_and_name_and_type; in Python, espnet_mvq.mvq_conf "
                "reads them"
            )
        check_ranges("mvq_conf", config, _RANGES)
        config.weight_schedule()
        return config

    def weight_schedule(self) -> WeightSchedule:
        """Return the weight over the course of training.

        Raises:
            ValueError: If the schedule has unknown options or bad values.
        """
        return WeightSchedule.from_dict(self.schedule, self.weight)

    def _check_choices(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"mvq_conf {name}: got {getattr(self, name)!r}, expected one of "
                    f"{', '.join(choices)}"
                )
        if isinstance(self.layer, int) and self.layer != -1 and self.layer < 1:
            raise ValueError(
                f"mvq_conf layer: got {self.layer}, expected a student block, counted "
                "from 1, or -1, the encoder output"
            )

    def _check_source(self, name: str) -> None:
        """Refuse options that do not fit the kind of target, which its name gives."""
        with_embeddings = self.loss in EMBEDDING_LOSSES
        of_indexes = is_of(name, DATA_NAME)
        from_quantizer = self.head_init == "quantizer"
        if is_of(name, TEACHER_NAME) != (self.teacher is not None):
            raise ValueError(
                f"mvq_conf: got teacher {self.teacher} for {name}; a target named "
                f"{TEACHER_NAME} has one, and one of data has none"
            )
        (losses,) = [known for kind, known in _LOSSES_OF.items() if is_of(name, kind)]
        if self.loss not in losses:
            raise ValueError(
                f"mvq_conf loss: got {self.loss} for {name}, expected one of "
                f"{', '.join(losses)}; loss: {CODEBOOKS} needs data named {DATA_NAME}, "
                f"and loss: {POSTERIORS} those named {POSTERIORS_NAME}"
            )
        if self.loss == POSTERIORS and (self.layer != -1 or self.level != "frame"):
            raise ValueError(
                f"mvq_conf layer of {name}: got {self.layer} and level {self.level}, "
                f"expected -1 and frame with loss {POSTERIORS}, as CTC is on each "
                "frame of the encoder output"
            )
        needs_quantizer = (
            self.soft_target_temperature > 0
            or self.embedding_weight > 0
            or from_quantizer
            or (with_embeddings and of_indexes)
        )
        if needs_quantizer and self.quantizer is None:
            raise ValueError(
                "mvq_conf: soft_target_temperature, embedding_weight, head_init and "
                "embeddings decoded from indexes need the codebooks; give quantizer: "
                "dump/mvq/.../quantizer.safetensors"
            )
        if from_quantizer and (with_embeddings or self.head != "independent"):
            raise ValueError(
                f"mvq_conf head_init: got quantizer with loss {self.loss} and head "
                f"{self.head}, expected loss {CODEBOOKS} and head independent"
            )
        if not of_indexes and self.quantizer:
            raise ValueError(
                f"mvq_conf quantizer: got {self.quantizer}, but {name} are no codebook "
                "indexes; leave it out"
            )


def parse_targets(conf: Dict[str, Any]) -> Dict[str, MVQConfig]:
    """Read the options of all targets.

    Args:
        conf: `mvq_conf`. With `targets: {NAME: {...}, ...}` there is one target for
            each NAME of stored data, or of a teacher; options outside of `targets` are
            defaults of all of them. Without, there is one, named as `lone_name` says.

    Returns:
        Options by name.

    Raises:
        ValueError: If one of them has bad options.
    """
    shared, targets = split_targets(as_mapping("", conf))
    if not targets:
        name = lone_name(conf)
        return {name: MVQConfig.from_dict(shared, name)}
    configs = {}
    for name, options in targets.items():
        try:
            configs[name] = MVQConfig.from_dict({**shared, **options}, name)
        except ValueError as error:
            raise ValueError(f"mvq_conf targets {name}: {error}") from error
    return configs


def split_targets(
    conf: Dict[str, Any],
) -> Tuple[Dict[str, Any], Dict[str, Dict[str, Any]]]:
    """Split `mvq_conf` into options of all targets, and those of each in `targets`.

    Raises:
        ValueError: If `targets` is no mapping of options by valid names.
    """
    shared = {k: value for k, value in conf.items() if k not in _NOT_OF_TARGETS}
    targets = {
        name: as_mapping(f"targets {name}", options)
        for name, options in as_mapping("targets", conf.get("targets")).items()
    }
    for name in targets:
        check_name(name)
    return shared, targets


def parse_weighting(conf: Dict[str, Any]) -> Optional[Weighting]:
    """Read the weighting of utterances between task and teachers.

    Args:
        conf: `mvq_conf`, of which only `weighting: {type: ..., ...}` is read.

    Returns:
        The weighting; None: all utterances alike.

    Raises:
        ValueError: If it has bad options.
    """
    options = conf.get("weighting")
    return build_weighting(options) if options else None


def parse_mask(conf: Dict[str, Any]) -> Optional[Mask]:
    """Read the masking of features in the task ssl.

    Args:
        conf: `mvq_conf`, of which only `mask: {prob: ..., ...}` is read.

    Returns:
        The masking, that of the defaults for `mask: {}`; None: there is none.

    Raises:
        ValueError: If it has bad options.
    """
    if conf.get("mask") is None:
        return None
    return Mask.from_dict(as_mapping("mask", conf["mask"]))


def as_mapping(name: str, value: Any) -> Dict[str, Any]:
    """Return a copy of a part of `mvq_conf`, empty if the yaml leaves it out.

    Args:
        name: Name of the part; empty: all of `mvq_conf`.
        value: Value of the yaml.

    Raises:
        ValueError: If it is no mapping.
    """
    whole = f"mvq_conf {name}".strip()
    if not isinstance(value, (dict, type(None))):
        raise ValueError(f"{whole}: got {value!r}, expected a mapping")
    for key in value or {}:
        if not isinstance(key, str):
            raise ValueError(f"{whole}: got the name {key!r}, expected a text")
    return dict(value or {})


def lone_name(conf: Dict[str, Any]) -> str:
    """Return the name of the one target that a yaml without `targets` has."""
    if conf.get("loss") == POSTERIORS:
        return POSTERIORS_NAME
    return DATA_NAME if conf.get("teacher") is None else TEACHER_NAME


def is_of(name: str, kind: str) -> bool:
    """Whether a target's name is a kind, or a kind and "_" and a word."""
    return name == kind or name.startswith(f"{kind}_")


def check_name(name: str) -> None:
    """Refuse a name of a target that ESPnet or the model could not use.

    Raises:
        ValueError: Naming those that are expected.
    """
    known = re.fullmatch(rf"({'|'.join(_LOSSES_OF)})(_\w+)?", name)
    if not known or name.endswith("_lengths") or name == TEACHER_LOSS_NAME:
        raise ValueError(
            f"codebook indexes: got the name {name!r}, expected {DATA_NAME!r}, "
            f"{EMBEDDINGS_NAME!r}, {POSTERIORS_NAME!r} or {TEACHER_NAME!r}, or one of "
            "them and _ and letters, digits and underscores, by which the model looks "
            "for them"
        )


def from_metadata(name: str, loss: str) -> Tuple[str, ...]:
    """Return the options that the metadata give where the yaml does not.

    Args:
        name: Name of the target.
        loss: Its loss.
    """
    indexes = ("num_codebooks", "codebook_size", "quantizer_id")
    frames = ("sample_rate", "frame_shift_samples", "frame_offset_samples")
    if is_of(name, POSTERIORS_NAME):
        return (*frames, "token_list")
    return (
        *(indexes if is_of(name, DATA_NAME) else ()),
        *frames,
        *(("dim",) if loss != CODEBOOKS or not is_of(name, DATA_NAME) else ()),
    )

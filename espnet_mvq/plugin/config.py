"""Options of `model_conf: mvq_conf:`."""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Union

from espnet_mvq.distillation import HEADS, WeightSchedule

# Data of ESPnet that is ours has this name, or one that begins so.
DATA_NAME = "codebook_indexes"


@dataclass
class MVQConfig:
    """Options of one target of the MVQ loss: a teacher's layer in a student's layer.

    Attributes:
        weight: Weight of the MVQ loss beside the task's own loss.
        schedule: How the weight changes over training: attributes of
            `espnet_mvq.distillation.WeightSchedule`, as `{warmup_updates: 1000}`. An
            update is a batch that was trained on.
        layer: Student layer that predicts, counted from 1; -1 = encoder output; or the
            dotted path of a submodule of the encoder.
        head: independent (each index on its own) or joint (from those before it).
        head_hidden_size: Units of the joint head.
        label_smoothing: Share of the target that is spread over all values, 0 to 1.
        soft_target_temperature: More than 0: entries near the stored one are targets
            too (see `soft_target_table`); needs `quantizer`.
        embedding_weight: Weight of the relative squared error of the expected
            embedding; needs `quantizer`.
        quantizer: File of the quantizer that the indexes were made with.
        delay_s: Seconds by which the student may lag behind the teacher.
        tolerance_frames: Teacher frames by which an utterance's indexes may be longer
            or shorter than its speech; beyond, it is left out of the MVQ loss.
        chance_warning_updates: Warn if the head is still at chance level after so many
            updates; 0 = never.
        student_frame_shift_samples: Samples between student frames. None: from the
            front end and the encoder's subsampling.
        student_frame_offset_samples: Centre of student frame 0. None: likewise.
        num_codebooks: Indexes per teacher frame, N. This and all below None: from the
            metadata beside the training set's codebook_indexes.scp.
        codebook_size: Values an index can take, K.
        frame_shift_samples: Samples between teacher frames.
        frame_offset_samples: Centre of teacher frame 0, in samples.
        quantizer_id: Content id of the quantizer.
    """

    weight: float = 1.0
    schedule: Dict[str, Any] = field(default_factory=dict)
    layer: Union[int, str] = -1
    head: str = "independent"
    head_hidden_size: int = 512
    label_smoothing: float = 0.0
    soft_target_temperature: float = 0.0
    embedding_weight: float = 0.0
    quantizer: Optional[str] = None
    delay_s: float = 0.0
    tolerance_frames: int = 3
    chance_warning_updates: int = 1000
    student_frame_shift_samples: Optional[float] = None
    student_frame_offset_samples: Optional[float] = None
    num_codebooks: Optional[int] = None
    codebook_size: Optional[int] = None
    sample_rate: Optional[int] = None
    frame_shift_samples: Optional[float] = None
    frame_offset_samples: Optional[float] = None
    quantizer_id: Optional[str] = None

    @classmethod
    def from_dict(cls, conf: Dict[str, Any]) -> "MVQConfig":
        """Build from yaml, refusing unknown names and missing or bad values.

        Raises:
            ValueError: Naming all that is wrong.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(conf) - set(known))
        if unknown:
            raise ValueError(
                f"mvq_conf: unknown option {', '.join(unknown)}; expected some of "
                f"{', '.join(known)}"
            )
        config = cls(**conf)
        missing = [name for name in FROM_METADATA if getattr(config, name) is None]
        if missing:
            raise ValueError(
                f"mvq_conf: {', '.join(missing)} missing. They are taken from the "
                "metadata when training runs through 'python3 -m espnet_mvq.run' with "
                "codebook indexes (type mvq_ark) in train_data_path_and_name_and_type"
            )
        if config.weight < 0 or config.num_codebooks < 1 or config.codebook_size < 2:
            raise ValueError(
                f"mvq_conf: got weight {config.weight}, num_codebooks "
                f"{config.num_codebooks} and codebook_size {config.codebook_size}, "
                "expected at least 0, 1 and 2"
            )
        if config.head not in HEADS:
            raise ValueError(
                f"mvq_conf head: got {config.head!r}, expected one of "
                f"{', '.join(HEADS)}"
            )
        for name, low, high in _RANGES:
            if not low <= getattr(config, name) <= high:
                raise ValueError(
                    f"mvq_conf {name}: got {getattr(config, name)}, expected {low} to "
                    f"{high}"
                )
        needs = config.soft_target_temperature > 0 or config.embedding_weight > 0
        if needs and config.quantizer is None:
            raise ValueError(
                "mvq_conf: soft_target_temperature and embedding_weight need the "
                "codebooks; give quantizer: dump/mvq/.../quantizer.safetensors"
            )
        config.weight_schedule()
        return config

    def weight_schedule(self) -> WeightSchedule:
        """Return the weight over training.

        Raises:
            ValueError: If the schedule has unknown options or bad values.
        """
        return WeightSchedule.from_dict(self.schedule, self.weight)


def parse_targets(conf: Dict[str, Any]) -> Dict[str, MVQConfig]:
    """Read the options of all targets.

    Args:
        conf: `mvq_conf`. With `targets: {NAME: {...}, ...}` there is one target for
            each NAME of indexes among the data; what it does not say is as said
            outside of `targets`. Without, there is one, named `codebook_indexes`.

    Returns:
        Options by name.

    Raises:
        ValueError: Naming all that is wrong with one of them.
    """
    shared = {name: value for name, value in conf.items() if name != "targets"}
    if not conf.get("targets"):
        return {DATA_NAME: MVQConfig.from_dict(shared)}
    configs = {}
    for name, options in conf["targets"].items():
        check_name(name)
        try:
            configs[name] = MVQConfig.from_dict({**shared, **(options or {})})
        except ValueError as error:
            raise ValueError(f"mvq_conf targets {name}: {error}") from error
    return configs


def check_name(name: str) -> None:
    """Refuse a name of indexes that ESPnet or the model could not use.

    Raises:
        ValueError: Saying what is expected.
    """
    if not re.fullmatch(rf"{DATA_NAME}(_\w+)?", name) or name.endswith("_lengths"):
        raise ValueError(
            f"codebook indexes: got the name {name!r}, expected {DATA_NAME!r} or "
            f"{DATA_NAME}_ and letters, digits and underscores, by which the model "
            "looks for them"
        )


_RANGES = (
    ("label_smoothing", 0.0, 1.0),
    ("soft_target_temperature", 0.0, float("inf")),
    ("embedding_weight", 0.0, float("inf")),
    ("head_hidden_size", 1, float("inf")),
)

# Filled in from codebook_indexes.json where the yaml does not give them.
FROM_METADATA = (
    "num_codebooks",
    "codebook_size",
    "sample_rate",
    "frame_shift_samples",
    "frame_offset_samples",
    "quantizer_id",
)

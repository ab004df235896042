"""Options of `model_conf: mvq_conf:`."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Dict, Optional, Union


@dataclass
class MVQConfig:
    """Options of the MVQ loss.

    Attributes:
        weight: Weight of the MVQ loss beside the task's own loss.
        layer: Student layer that predicts, counted from 1; -1 = encoder output; or the
            dotted path of a submodule of the encoder.
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
    layer: Union[int, str] = -1
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
        return config


# Filled in from codebook_indexes.json where the yaml does not give them.
FROM_METADATA = (
    "num_codebooks",
    "codebook_size",
    "sample_rate",
    "frame_shift_samples",
    "frame_offset_samples",
    "quantizer_id",
)

"""Teacher embeddings as target: embedding KD, beside the MVQ loss."""

from typing import Dict, List, Optional, Tuple

import torch

from espnet_mvq.distillation import (
    ChannelNormaliser,
    FrameGrid,
    embedding_loss,
    mean_over_time,
)
from espnet_mvq.plugin.codebook_target import check_indexes, load_quantizer
from espnet_mvq.plugin.config import MVQConfig
from espnet_mvq.plugin.padded import Padded
from espnet_mvq.plugin.target import Target, weights_of_slots
from espnet_mvq.quantization import Quantizer
from espnet_mvq.teachers import Teacher, build_teacher

BATCH_S = 200.0  # seconds of speech that a teacher in the loop runs on at once


class EmbeddingTarget(Target):
    """A student layer predicts teacher embeddings through a linear projection.

    The embeddings are stored ones, or decoded from codebook indexes, or the teacher
    runs in each step. Each channel is normalised, so that the loss of a head that has
    learned nothing is about 1 a frame.
    """

    STATS = ("loss_embedding", "embedding_error", "embedding_cosine", "mvq_frames")

    def __init__(
        self, name: str, config: MVQConfig, student: FrameGrid, input_size: int
    ):
        super().__init__(name, config, student, input_size)
        self.projection = torch.nn.Linear(
            input_size, self.aligner.num_slots * config.dim
        )
        self.normaliser = ChannelNormaliser(config.dim)
        # In lists: as submodules they would be saved with the student.
        self._quantizer: List[Quantizer] = []
        self._teacher: List[Teacher] = []

    def teacher_data(
        self, loaded: Optional[Padded], speech: Padded, weight: float
    ) -> Optional[Padded]:
        """See `Target.teacher_data`; a teacher in the loop rests at weight 0."""
        if self.config.teacher is not None and weight != 0:
            loaded = self._run_teacher(speech)
        return super().teacher_data(loaded, speech, weight)

    def _teacher_values(self, values: torch.Tensor) -> torch.Tensor:
        if self.config.teacher is not None:
            return values
        if self.config.quantizer is not None:
            return self._decode(values)
        if values.dim() != 3 or values.shape[2] != self.config.dim:
            raise ValueError(
                f"{self.name}: got shape {tuple(values.shape)}, expected (batch, "
                f"frames, {self.config.dim}) as mvq_conf dim says"
            )
        return values

    def _decode(self, indexes: torch.Tensor) -> torch.Tensor:
        """Turn indexes (B, T, N) into embeddings (B, T, D)."""
        if not self._quantizer:
            self._quantizer.append(load_quantizer(self.name, self.config))
        check_indexes(self.name, self.config, indexes)
        quantizer = self._quantizer[0] = self._quantizer[0].to(indexes.device)
        # Padding is negative; the alignment ignores its embeddings.
        return quantizer.decode(indexes.clamp(min=0))

    def _run_teacher(self, speech: Padded) -> Padded:
        """Embed the speech of a batch (B, S), with the student's augmentation."""
        if speech.values.dim() != 2:
            raise ValueError(
                f"{self.name}: mvq_conf teacher needs waveforms, got features of shape "
                f"{tuple(speech.values.shape)}; use feats_type: raw, or stored "
                "embeddings"
            )
        if not self._teacher:
            # Models are initialised before their weights are loaded; the student's
            # dropout must not depend on it.
            with torch.random.fork_rng():
                teacher = build_teacher(
                    self.config.teacher,
                    layer=self.config.teacher_layer,
                    device=speech.values.device,
                    **{"batch_s": BATCH_S, **(self.config.teacher_conf or {})},
                )
            self._teacher.append(teacher)
        embeddings, lengths = self._teacher[0].embed(speech.values, speech.lengths)
        lengths = lengths.to(speech.values.device)
        if self.pooled:
            return Padded(*mean_over_time(embeddings, lengths))
        # Autograd does not accept tensors of inference mode.
        return Padded(embeddings.clone(), lengths)

    def _loss(
        self,
        frames: torch.Tensor,
        values: torch.Tensor,
        known: torch.Tensor,
        frame_weights: Optional[torch.Tensor],
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        chosen = known.any(2)
        predicted = self.projection(frames[chosen])
        predicted = predicted.unflatten(1, values.shape[2:])[known[chosen]]
        embeddings = values[known]
        if not embeddings.isfinite().all():
            # They would stay in the normaliser for good.
            raise ValueError(
                f"{self.name}: got NaN or infinite embeddings; expected finite ones. "
                "Extract them again, or give a teacher in the loop dtype: float32 in "
                "teacher_conf; is the audio sound?"
            )
        if self.training and torch.is_grad_enabled():
            self.normaliser.update(embeddings)
        weights = weights_of_slots(frame_weights, known)
        output = embedding_loss(
            self.config.loss, predicted, self.normaliser(embeddings), weights
        )
        return self._mean_loss(
            output.loss,
            chosen,
            output.squared_error / output.num_embeddings,
            output.similarity / output.num_embeddings,
        )

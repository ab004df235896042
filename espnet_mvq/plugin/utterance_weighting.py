"""Weights of utterances in the task's loss and in those of the teachers."""

import argparse
import contextlib
import math
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional

import torch

from espnet_mvq.distillation import Weighting
from espnet_mvq.plugin.config import TEACHER_LOSS_NAME, UNLABELLED_NAME
from espnet_mvq.plugin.criterion_weighting import CriterionWeighting
from espnet_mvq.plugin.data_type import LIST_NAME

# Statistics that are None in the task asr_transducer where the loss is 0
_NONE_AT_ZERO = {
    "loss_aux_ctc": "use_auxiliary_ctc",
    "loss_aux_lm": "use_auxiliary_lm_loss",
}
# Text of an unlabelled utterance whose text is empty, as some of ESPnet's losses fail
# on empty texts. Any token will do: the weight of the loss is 0.
_ANY_TOKEN = 1


@dataclass
class TeacherWeights:
    """Weights of a batch's utterances in the losses of the teachers.

    Attributes:
        values: Float, (B,). None until the forward has ended, and if all are 1.
    """

    values: Optional[torch.Tensor] = None


class UtteranceWeighting:
    """Weights the utterances of a batch in the task's losses and the teachers'.

    With a weighting, as AdaKD, utterance i has the weight 1 - a_i in the task's losses
    and a_i in those of the teachers (Ganguly et al. 2024, arXiv:2405.08019).
    Unlabelled utterances have the weights 0 and 1. All others, and all in evaluation,
    have 1 and 1; a batch of nothing else runs through ESPnet's losses unchanged. Only
    the data `unlabelled` mark an utterance as unlabelled: an empty text is a text, for
    which ESPnet has a loss.

    Args:
        model: ESPnet model.
        weighting: Formula of the weights; None: all alike.
    """

    def __init__(self, model: torch.nn.Module, weighting: Optional[Weighting]):
        self._model = model
        self._weighting = weighting
        self._criteria: Optional[CriterionWeighting] = None
        if weighting is not None:
            self._criteria = CriterionWeighting(model)

    @contextlib.contextmanager
    def weight_task(
        self, batch: Dict[str, Any], has_teacher: torch.Tensor, update: int
    ) -> Iterator[TeacherWeights]:
        """Weight the utterances in the task's losses while the block runs one forward.

        Args:
            batch: Data of the batch beside the speech. These are taken out of it:
                `unlabelled`, (B, 1), not 0 for unlabelled utterances, whose empty texts
                are replaced; and `teacher_loss`, (B, 1), the teacher's task loss in
                nats per label, NaN where there is none.
            has_teacher: Mask of utterances that have a loss of a teacher, bool, (B,).
            update: Updates already made.

        Raises:
            ValueError: If a teacher loss that the weighting needs is missing.
        """
        weights = TeacherWeights()
        teacher_losses = _pop(batch, TEACHER_LOSS_NAME)
        unlabelled = _pop(batch, UNLABELLED_NAME)
        labelled = torch.ones_like(has_teacher)
        if unlabelled is not None:
            labelled = unlabelled == 0
        weighting = self._weighting if self._model.training else None
        if weighting is None and bool(labelled.all()):
            yield weights
            return
        _fill_empty_texts(batch, labelled)
        if self._criteria is None:
            self._criteria = CriterionWeighting(self._model)
        if teacher_losses is not None:
            # Those of other utterances are not used, and may be NaN.
            teacher_losses = teacher_losses.masked_fill(~(labelled & has_teacher), 0)
            _refuse_nan(teacher_losses, batch.get("utt_id"))
        alphas = []

        def weigh(losses: torch.Tensor, num_labels: torch.Tensor) -> torch.Tensor:
            if weighting is None:
                return labelled.to(losses.dtype)
            per_label = losses / num_labels.clamp(min=1)
            alphas.append(weighting.alphas(update, teacher_losses, per_label))
            return torch.where(has_teacher, 1 - alphas[-1], 1.0) * labelled

        with self._criteria.weighted_by(weigh):
            yield weights
        if alphas:
            # Focal weighting has other weights for each criterion.
            alpha = torch.stack(alphas).mean(0) * has_teacher
            weights.values = torch.where(labelled, alpha, 1.0)

    def stats(
        self,
        task_stats: Dict[str, Optional[torch.Tensor]],
        weights: TeacherWeights,
        device: torch.device,
    ) -> Dict[str, torch.Tensor]:
        """Return the mean weight of a batch, and statistics that the task left out.

        All ranks need the same statistics: ESPnet gathers them one by one, and waits
        for ever for one that a rank does not have.
        """
        stats = {
            name: torch.zeros(1, device=device)
            for name, option in _NONE_AT_ZERO.items()
            if getattr(self._model, option, False) and task_stats.get(name) is None
        }
        if self._weighting is not None:
            nan = torch.full((), math.nan, device=device)
            values = weights.values
            stats["mvq_alpha"] = nan if values is None else values.float().mean()
        return stats


def refuse_unweighable(model: torch.nn.Module, args: argparse.Namespace) -> None:
    """Refuse a list of unlabelled utterances if the model's loss cannot be weighted.

    Args:
        model: ESPnet model.
        args: Options of its training.

    Raises:
        ValueError: Naming the list and the criteria.
    """
    data = list(getattr(args, "train_data_path_and_name_and_type", None) or [])
    data += getattr(args, "valid_data_path_and_name_and_type", None) or []
    lists = [path for path, _, kind in data if kind == LIST_NAME]
    if lists:
        try:
            CriterionWeighting(model)
        except ValueError as error:
            message = f"{lists[0]} of type {LIST_NAME!r}: {error}"
            raise ValueError(message) from error


def _pop(batch: Dict[str, Any], name: str) -> Optional[torch.Tensor]:
    """Take the number of each utterance, (B,), out of a batch; None without."""
    batch.pop(f"{name}_lengths", None)
    numbers = batch.pop(name, None)
    return None if numbers is None else numbers.flatten()


def _refuse_nan(teacher_losses: torch.Tensor, utt_ids: Optional[List[str]]) -> None:
    """Refuse a batch that lacks teacher losses, naming the first utterance."""
    missing = teacher_losses.isnan().nonzero().flatten().tolist()
    if missing and utt_ids is not None:
        raise ValueError(
            f"mvq_conf weighting: utterance {utt_ids[missing[0]]} and "
            f"{len(missing) - 1} more of a batch have a teacher's data and no teacher "
            "loss; run espnet_mvq.bin.teacher_loss on this training set, and name "
            f"those without text in a list of type {LIST_NAME}"
        )


def _fill_empty_texts(batch: Dict[str, Any], labelled: torch.Tensor) -> None:
    """Fill the empty texts of unlabelled utterances with one token."""
    for name in [n for n in batch if f"{n}_lengths" in batch]:
        text, lengths = batch[name], batch[f"{name}_lengths"]
        empty = ~labelled & (lengths == 0)
        if text.is_floating_point() or not empty.any():
            continue
        if text.shape[1] == 0:
            text = text.new_full((len(text), 1), -1)
        first = torch.where(empty, _ANY_TOKEN, text[:, 0])
        batch[name] = torch.cat([first.unsqueeze(1), text[:, 1:]], dim=1)
        batch[f"{name}_lengths"] = lengths.masked_fill(empty, 1)

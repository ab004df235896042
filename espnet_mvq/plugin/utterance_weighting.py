"""How much each utterance counts in the task's loss and in those of the teachers."""

import argparse
import contextlib
import math
from typing import Any, Dict, Iterator, List, Optional

import torch

from espnet_mvq.distillation import Weighting
from espnet_mvq.plugin.config import UNLABELLED_NAME
from espnet_mvq.plugin.criterion_weighting import TaskLossWeigher
from espnet_mvq.plugin.data_type import LIST_NAME

# Statistics that the task asr_transducer leaves out where the loss is 0
_LEFT_OUT = {
    "loss_aux_ctc": "use_auxiliary_ctc",
    "loss_aux_lm": "use_auxiliary_lm_loss",
}
# What an unlabelled utterance with an empty text is given in its place: any token will
# do, as its loss counts nothing; without any, some of ESPnet's losses fail.
_ANY_TOKEN = 1


class Balance:
    """Weighs the utterances of a batch between task and teachers.

    Two things are done here. With a weighting, as AdaKD, utterance i counts 1 - a_i in
    the task's losses and a_i in those of the teachers (Ganguly et al. 2024,
    arXiv:2405.08019). And an unlabelled utterance, which has nothing but teachers,
    counts 0 and 1. All others, and all in evaluation, count 1 and 1: then ESPnet's
    losses are left alone. Only the data `unlabelled` say which utterances are so: an
    empty text alone is a text, of which ESPnet has a loss.

    Args:
        model: ESPnet model.
        weighting: How to weigh; None: all alike.
    """

    def __init__(self, model: torch.nn.Module, weighting: Optional[Weighting]):
        self._model = model
        self._weighting = weighting
        self._weigher: Optional[TaskLossWeigher] = None
        self._utterance_weights: Optional[torch.Tensor] = None
        if weighting is not None:
            self._weigher = TaskLossWeigher(model)

    @contextlib.contextmanager
    def weighing(
        self,
        batch: Dict[str, Any],
        with_teacher: torch.Tensor,
        update: int,
        teacher_losses: Optional[torch.Tensor],
    ) -> Iterator[None]:
        """Have the task's losses weighed while the block runs.

        Args:
            batch: What the model is given beside the speech. `unlabelled`, (B, 1), not
                0 for utterances whose text is none, is taken out of it, and their texts
                are replaced if they are empty.
            with_teacher: Whether an utterance has a loss of a teacher, bool, (B,).
            update: Updates already made.
            teacher_losses: Task loss of the teacher on each utterance, nats per label,
                (B,), NaN where there is none; None: not known.
        """
        self._utterance_weights = None
        labelled = _labelled(batch, with_teacher)
        weighting = self._weighting if self._model.training else None
        if weighting is None and bool(labelled.all()):
            yield
            return
        _fill_empty_texts(batch, labelled)
        if self._weigher is None:
            self._weigher = TaskLossWeigher(self._model)
        if teacher_losses is not None:
            # Of all others nobody will ask.
            asked = labelled & with_teacher
            teacher_losses = teacher_losses.masked_fill(~asked, 0)
            _refuse_nan(teacher_losses, batch.get("utt_id"))
        alphas = []

        def weigh(losses: torch.Tensor, num_labels: torch.Tensor) -> torch.Tensor:
            if weighting is None:
                return labelled.to(losses.dtype)
            per_label = losses / num_labels.clamp(min=1)
            alphas.append(weighting.alphas(update, teacher_losses, per_label))
            return torch.where(with_teacher, 1 - alphas[-1], 1.0) * labelled

        with self._weigher.weighing(weigh):
            yield
        if alphas:
            # Weightings that look at the student's loss see one for each criterion.
            alpha = torch.stack(alphas).mean(0) * with_teacher
            self._utterance_weights = torch.where(labelled, alpha, 1.0)

    def completed(
        self, stats: Dict[str, Optional[torch.Tensor]], device: torch.device
    ) -> Dict[str, Optional[torch.Tensor]]:
        """Fill in what the model leaves out of the statistics of some batches.

        ESPnet gathers them from all ranks one by one, and waits for ever for one that
        a rank does not have; as that of a loss without any labelled utterance.
        """
        missing = {
            name: torch.zeros(1, device=device)
            for name, option in _LEFT_OUT.items()
            if getattr(self._model, option, False) and stats.get(name) is None
        }
        return {**stats, **missing}

    def take(self) -> Optional[torch.Tensor]:
        """Hand over the weights of utterances in the teachers' losses, once.

        Returns:
            (B,), or None: all 1.
        """
        weights, self._utterance_weights = self._utterance_weights, None
        return weights

    def stats(
        self, weights: Optional[torch.Tensor], device: torch.device
    ) -> Dict[str, torch.Tensor]:
        """Return the mean weight of a batch, if utterances are weighed."""
        if self._weighting is None:
            return {}
        if weights is None:
            return {"mvq_alpha": torch.full((), math.nan, device=device)}
        return {"mvq_alpha": weights.float().mean()}


def refuse_unweighable(model: torch.nn.Module, args: argparse.Namespace) -> None:
    """Refuse a list of unlabelled utterances if the model's loss cannot leave them out.

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
            TaskLossWeigher(model)
        except ValueError as error:
            message = f"{lists[0]} of type {LIST_NAME!r}: {error}"
            raise ValueError(message) from error


def _labelled(batch: Dict[str, Any], like: torch.Tensor) -> torch.Tensor:
    """Say which utterances have a text of their own, bool, (B,)."""
    flags = batch.pop(UNLABELLED_NAME, None)
    batch.pop(f"{UNLABELLED_NAME}_lengths", None)
    return torch.ones_like(like) if flags is None else flags.flatten() == 0


def _refuse_nan(teacher_losses: torch.Tensor, utt_ids: Optional[List[str]]) -> None:
    """Refuse a batch of which a teacher loss is needed and not there, by name."""
    missing = teacher_losses.isnan().nonzero().flatten().tolist()
    if missing and utt_ids is not None:
        raise ValueError(
            f"mvq_conf weighting: utterance {utt_ids[missing[0]]} and "
            f"{len(missing) - 1} more of a batch have a teacher's data and no teacher "
            "loss; run espnet_mvq.bin.teacher_loss on this training set, and name "
            f"those without text in a list of type {LIST_NAME}"
        )


def _fill_empty_texts(batch: Dict[str, Any], labelled: torch.Tensor) -> None:
    """Give unlabelled utterances one token in all their texts that are empty."""
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

"""Utterances through a teacher with its task head, loss by loss."""

import math
from typing import Any, Dict, List, Tuple

from espnet_mvq.teachers.audio import AudioError
from espnet_mvq.teachers.task_loss import TaskLoss


def losses_of_batch(
    task_loss: TaskLoss, batch: Dict[str, Any], inputs: Dict[str, Tuple[str, str]]
) -> Tuple[Dict[str, Tuple[float, int]], List[ValueError]]:
    """Compute the losses of a batch.

    Args:
        task_loss: The teacher.
        batch: Waveform (S,) or AudioError of each utterance.
        inputs: Audio's place and text of each utterance.

    Returns:
        Of each utterance with a loss the sum over its labels, in nats, and their
        number; and what is wrong with the others.
    """
    errors = [found for found in batch.values() if isinstance(found, AudioError)]
    audio = {u: a for u, a in batch.items() if not isinstance(a, AudioError)}
    texts = [inputs[utt_id][1] for utt_id in audio]
    losses = {}
    for utt_id, nats, num_labels in zip(
        audio, *task_loss.loss(list(audio.values()), texts)
    ):
        if math.isfinite(nats):
            losses[utt_id] = nats, num_labels
        elif math.isnan(nats):
            errors.append(
                ValueError(
                    f"utterance {utt_id}: the teacher {task_loss.spec} gives NaN; "
                    "check the audio and the teacher's weights and precision"
                )
            )
        else:
            seconds = len(audio[utt_id]) / task_loss.sample_rate
            error = (
                f"utterance {utt_id}: got an infinite loss, as {num_labels} labels do "
                f"not fit into {seconds:.2f} s of speech; check its text, or leave it "
                "out with --on_error skip"
            )
            errors.append(ValueError(error))
    return losses, errors

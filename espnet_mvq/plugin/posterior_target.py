"""Posteriors of a CTC teacher as target: posterior KD through the student's own CTC."""

from typing import Dict, List, Optional, Tuple

import torch

from espnet_mvq.distillation import posterior_loss, read_sparse
from espnet_mvq.plugin.target import Target, weights_of_slots


class PosteriorTarget(Target):
    """The student's CTC output comes near the posteriors of a CTC teacher.

    The target has no weights of its own: the model's CTC layer predicts, on the encoder
    output, without the dropout of its loss. A student frame in which several teacher
    frames fall has one distribution for all of them.
    """

    STATS = (
        "loss_posterior",
        "posterior_divergence",
        "posterior_agreement",
        "mvq_frames",
    )

    def connect(self, model: torch.nn.Module) -> None:
        """See `Target.connect`.

        Raises:
            ValueError: If the model has no CTC on the output of its encoder, or other
                tokens than the teacher. It may have more tokens behind the teacher's.
        """
        ctc = getattr(model, "ctc", None)
        if ctc is None or getattr(model, "postencoder", None) is not None:
            raise ValueError(
                f"{self.name}: got a {type(model).__name__} without CTC on its encoder "
                "output, which loss: posteriors trains; expected model_conf ctc_weight "
                "above 0 and no postencoder, in a task with ESPnet's CTC"
            )
        # In the task st, CTC is on the text in the language of the speech.
        tokens = getattr(model, "src_token_list", model.token_list)
        refuse_other_tokens(
            self.name, self.config.token_list, tokens[: ctc.ctc_lo.out_features]
        )
        # In a list: as a submodule it would be saved twice.
        self._ctc = [ctc]

    def _teacher_values(self, values: torch.Tensor) -> torch.Tensor:
        vocab_size, width = len(self.config.token_list), values.shape[-1]
        if values.dim() != 3 or width < 3 or width % 2 == 0:
            raise ValueError(
                f"{self.name}: got shape {tuple(values.shape)}, expected (batch, "
                "frames, 2 k + 1) as mvq.sh --target posteriors stores"
            )
        tokens = values[..., : width // 2]
        if tokens.numel() and int(tokens.max()) >= vocab_size:
            raise ValueError(
                f"{self.name}: got token {int(tokens.max())}, expected less than "
                f"{vocab_size}, the number of the teacher's tokens"
            )
        return values

    def _loss(
        self,
        frames: torch.Tensor,
        values: torch.Tensor,
        known: torch.Tensor,
        frame_weights: Optional[torch.Tensor],
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        chosen = known.any(2)
        logits = self._ctc[0].ctc_lo(frames[chosen])
        if known.shape[2] > 1:
            logits = logits[known[chosen].nonzero()[:, 0]]
        weights = weights_of_slots(frame_weights, known)
        output = posterior_loss(
            logits, *read_sparse(values[known]), self.config.temperature, weights
        )
        return self._mean_loss(
            output.loss,
            chosen,
            output.divergence / output.num_frames,
            output.num_agreeing / output.num_frames,
        )


def refuse_other_tokens(name: str, teacher: List[str], student: List[str]) -> None:
    """Refuse tokens of a student that do not begin with those of the teacher.

    Raises:
        ValueError: Naming the first token that differs.
    """
    for number, token in enumerate(teacher):
        own = student[number] if number < len(student) else None
        if own != token:
            raise ValueError(
                f"{name}: got posteriors of a teacher with other tokens: token "
                f"{number} is {token!r} there and {own!r} in the student's token list; "
                "expected the same list. Train one of them with that of the other: "
                f"{name}.json has the teacher's as token_list"
            )

"""The transducer loss by torchaudio, where ESPnet's warp-transducer is not built."""

import torch
from torchaudio.functional import rnnt_loss


class RNNTLoss(torch.nn.Module):
    """Transducer loss with the interface of warp-transducer, mean over the batch.

    Args:
        blank: Index of the blank label.
        fastemit_lambda: Weight of FastEmit; only 0.
    """

    def __init__(self, blank: int = 0, fastemit_lambda: float = 0.0):
        super().__init__()
        if fastemit_lambda != 0:
            raise ValueError(
                f"fastemit_lambda: got {fastemit_lambda}, expected 0: torchaudio has "
                "no FastEmit; build warp-transducer"
            )
        self.blank = blank

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        logit_lengths: torch.Tensor,
        label_lengths: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the loss of logits (B, T, U + 1, V) and labels (B, U), a scalar."""
        integers = (x.int() for x in (labels, logit_lengths, label_lengths))
        return rnnt_loss(logits.float(), *integers, blank=self.blank)

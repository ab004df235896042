"""Prediction heads: from student frames to logits of codebook indexes."""

import torch


class IndependentHead(torch.nn.Linear):
    """Predicts every index of a frame on its own, all by one projection.

    Args:
        input_size: Channels C of the student layer.
        num_targets: Indexes to predict per student frame: slots x codebooks.
        codebook_size: Values K an index can take.

    Source: the plain cross-entropy head of Guo et al. 2022 (`is_joint=False`); one
        projection in place of one per codebook, and no unused parameters.
    """

    def __init__(self, input_size: int, num_targets: int, codebook_size: int):
        super().__init__(input_size, num_targets * codebook_size)
        self.num_targets = num_targets
        self.codebook_size = codebook_size

    def reset_parameters(self) -> None:
        """Set initial weights: logits of unit variance for inputs of unit variance."""
        torch.nn.init.normal_(self.weight, std=self.in_features**-0.5)
        torch.nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits.

        Args:
            x: Student frames, float, (F, C).

        Returns:
            Logits, (F, num_targets, K).
        """
        return super().forward(x).reshape(-1, self.num_targets, self.codebook_size)

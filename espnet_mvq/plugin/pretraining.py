"""Masked prediction of codebook indexes in ESPnet's task ssl: speech without text.

Source: SPEAR (Yang et al. 2025, arXiv:2510.25955).
"""

import argparse
import functools
from typing import Any, Callable, Dict, List, Tuple, Type

import torch
from espnet2.ssl.loss.abs_loss import AbsSSLLoss
from espnet2.train.collate_fn import CommonCollateFn

from espnet_mvq.frame_timing.tasks import ESPnetTask

# Options of ESPnet's collate function that change the speech under its indexes
_MOVING = ("crop_audio", "rand_crop", "mix_speech", "reverb_speech")


class MVQPretrainingLoss(AbsSSLLoss):
    """Loss `mvq` of the task ssl: 0, to which the model `mvq` adds its targets' losses.

    ESPnet's task needs a loss, and its default, that of HuBERT, needs other labels.
    Losses of ESPnet beside it are added as they are.

    Args:
        encoder_output_size: Given by ESPnet; not used.
    """

    def __init__(self, encoder_output_size: int):
        super().__init__()
        self.util_attributes: List[str] = []
        self.required_inputs: List[str] = ["encoder_output"]

    def forward(
        self, encoder_output: List[torch.Tensor]
    ) -> Tuple[torch.Tensor, Dict[str, Any]]:
        """Return 0 and no statistics.

        Args:
            encoder_output: Output of each layer, float, (B, T, C).
        """
        # DDP needs a gradient for the encoder on batches without indexes, too.
        return 0.0 * encoder_output[-1].float().sum(), {}


def wrap_collate_fn(row: ESPnetTask, task: Type) -> None:
    """Collate whole utterances and all their data for our models.

    ESPnet's collate function of the task ssl crops the speech, and drops all data but
    speech and text.
    """
    original = task.build_collate_fn.__func__

    @functools.wraps(original)
    def build_collate_fn(cls: Type, args: argparse.Namespace, train: bool) -> Callable:
        if not row.uses_mvq(vars(args)):
            return original(cls, args, train)
        moving = [name for name in _MOVING if args.collate_fn_conf.get(name)]
        if moving:
            raise ValueError(
                f"collate_fn_conf: got {', '.join(moving)}, which change the speech "
                "under its codebook indexes; leave them out"
            )
        return CommonCollateFn(float_pad_value=0.0, int_pad_value=-1)

    task.build_collate_fn = classmethod(build_collate_fn)

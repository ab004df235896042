"""Making the plugin known to ESPnet: the one place that changes ESPnet's tables."""

import argparse
import functools
import sys
from typing import Type

import torch
from espnet2.tasks.asr import ASRTask, model_choices
from espnet2.torch_utils.initialize import initialize

from espnet_mvq import __version__
from espnet_mvq.plugin.data_type import register_data_type
from espnet_mvq.plugin.metadata_check import complete_mvq_conf
from espnet_mvq.plugin.model import make_mvq_model

MODEL_NAME = "mvq"


@functools.lru_cache(maxsize=None)  # once per process
def register() -> None:
    """Register `model: mvq` and the data type `mvq_ark`.

    Raises:
        ValueError: If another plugin has taken the name.
    """
    if MODEL_NAME in model_choices.classes:
        other = model_choices.classes[MODEL_NAME]
        raise ValueError(
            f"model {MODEL_NAME!r} is already registered in ESPnet, by "
            f"{other.__module__}.{other.__name__}; expected the name to be free"
        )
    base = model_choices.classes["espnet"]
    model_choices.classes[MODEL_NAME] = make_mvq_model(base, "MVQASRModel")
    register_data_type()
    _complete_options_before_training(ASRTask)
    _initialize_without_plugin(ASRTask)
    # Not by logging: ESPnet sets that up later, and every log should show this line.
    print(
        f"espnet_mvq {__version__}: registered model 'mvq' and data type 'mvq_ark'",
        file=sys.stderr,
    )


def _complete_options_before_training(task: Type) -> None:
    """Have the metadata copied into the options before a training starts.

    ESPnet offers no hook between its options and `build_model`; `main_worker` is
    where every training process, spawned ones too, begins. Inference never gets
    there: it builds the model from the `config.yaml` that training has completed.
    """
    original = task.main_worker.__func__

    @functools.wraps(original)
    def main_worker(cls: Type, args: argparse.Namespace) -> None:
        if getattr(args, "model", None) == MODEL_NAME:
            complete_mvq_conf(args)
        original(cls, args)

    task.main_worker = classmethod(main_worker)


def _initialize_without_plugin(task: Type) -> None:
    """Have `--init` draw the student's weights as if the plugin were not there.

    ESPnet draws for all parameters, ours too, before it draws embeddings again, so
    the student would not start from the baseline's weights. The plugin's part keeps
    the weights it was built with.
    """
    original = task.build_model.__func__

    @functools.wraps(original)
    def build_model(cls: Type, args: argparse.Namespace) -> torch.nn.Module:
        init = getattr(args, "init", None)
        if getattr(args, "model", None) != MODEL_NAME or init is None:
            return original(cls, args)
        args.init = None
        try:
            model = original(cls, args)
        finally:
            args.init = init
        mvq, model.mvq = model.mvq, None
        initialize(model, init)
        model.mvq = mvq
        return model

    task.build_model = classmethod(build_model)

"""Making the plugin known to ESPnet: the one place that changes ESPnet's tables."""

import argparse
import functools
import sys
from typing import Type

import torch
from espnet2.torch_utils.initialize import initialize

from espnet_mvq import __version__
from espnet_mvq.plugin.data_type import register_data_types
from espnet_mvq.plugin.tasks import MVQTask, find_tasks
from espnet_mvq.plugin.training_checks import complete_mvq_conf
from espnet_mvq.plugin.utterance_weighting import refuse_unweighable

_LIGHTNING_MODULE = "espnet2.train.lightning_espnet_model"


@functools.lru_cache(maxsize=None)  # once per process
def register() -> None:
    """Register our models with ESPnet's tasks, and our data types.

    Raises:
        ValueError: If another plugin has taken a name; then nothing is registered.
    """
    tasks = find_tasks()
    for task in tasks:
        task.check()
    for task in tasks:
        task.add_models()
        _complete_options_before_training(task)
        _complete_options_before_lightning(task)
        _refuse_unweighable_criteria(task)
        _initialize_without_plugin(task)
    types = register_data_types()
    # Not by logging: ESPnet sets that up later, and every log should show this line.
    names = ", ".join(task.name for task in tasks)
    print(
        f"espnet_mvq {__version__}: registered model 'mvq' (tasks {names}), data "
        f"types {', '.join(types)}",
        file=sys.stderr,
    )


def _complete_options_before_training(mvq_task: MVQTask) -> None:
    """Have the metadata copied into the options before a training starts.

    ESPnet offers no hook between its options and `build_model`; `main_worker` is
    where every training process, spawned ones too, begins, but for those of Lightning.
    Inference never gets there: it builds the model from the `config.yaml` that training
    has completed.
    """
    original = mvq_task.task.main_worker.__func__

    @functools.wraps(original)
    def main_worker(cls: Type, args: argparse.Namespace) -> None:
        if mvq_task.uses_mvq(args):
            complete_mvq_conf(args)
        original(cls, args)

    mvq_task.task.main_worker = classmethod(main_worker)


def _complete_options_before_lightning(mvq_task: MVQTask) -> None:
    """Do the same in `espnet2.bin.lightning_train`, which goes to `build_model` itself.

    Inference with a model of Lightning finds `lightning_conf` in its options too, but
    its process has no use for ESPnet's module for Lightning.
    """
    original = mvq_task.task.build_model.__func__

    @functools.wraps(original)
    def build_model(cls: Type, args: argparse.Namespace) -> torch.nn.Module:
        trains = hasattr(args, "lightning_conf") and _LIGHTNING_MODULE in sys.modules
        if trains and mvq_task.uses_mvq(args):
            complete_mvq_conf(args)
        return original(cls, args)

    mvq_task.task.build_model = classmethod(build_model)


def _refuse_unweighable_criteria(mvq_task: MVQTask) -> None:
    """Have a loss that cannot leave out unlabelled utterances refused at the start.

    The model does not know the data; in the middle of a training it would be too late.
    """
    original = mvq_task.task.build_model.__func__

    @functools.wraps(original)
    def build_model(cls: Type, args: argparse.Namespace) -> torch.nn.Module:
        model = original(cls, args)
        if mvq_task.uses_mvq(args):
            refuse_unweighable(model, args)
        return model

    mvq_task.task.build_model = classmethod(build_model)


def _initialize_without_plugin(mvq_task: MVQTask) -> None:
    """Have `--init` draw the student's weights as if the plugin were not there.

    ESPnet draws for all parameters, ours too, before it draws embeddings again, so
    the student would not start from the baseline's weights. The plugin's part keeps
    the weights it was built with.
    """
    if not hasattr(mvq_task.module, "initialize"):
        return  # asr_transducer refuses --init, and is to go on doing so
    original = mvq_task.task.build_model.__func__

    @functools.wraps(original)
    def build_model(cls: Type, args: argparse.Namespace) -> torch.nn.Module:
        init = getattr(args, "init", None)
        if init is None or not mvq_task.uses_mvq(args):
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

    mvq_task.task.build_model = classmethod(build_model)

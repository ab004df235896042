"""Registration of the plugin: the one module that changes ESPnet's classes and tables.

A task of ESPnet gets our models, `main_worker` completes `mvq_conf` before a training,
and `build_model` does what depends on the options.
"""

import argparse
import contextlib
import functools
import importlib
import sys
from types import ModuleType
from typing import Dict, Optional, Type

import torch
from espnet2.torch_utils.initialize import initialize

from espnet_mvq import __version__
from espnet_mvq.frame_timing.tasks import TASKS, ESPnetTask
from espnet_mvq.plugin.criterion_weighting import replaced
from espnet_mvq.plugin.data_type import register_data_types
from espnet_mvq.plugin.model import make_mvq_model
from espnet_mvq.plugin.training_checks import complete_mvq_conf, refuse_lone_loss
from espnet_mvq.plugin.utterance_weighting import refuse_unweighable

_LIGHTNING_MODULE = "espnet2.train.lightning_espnet_model"


@functools.lru_cache(maxsize=None)  # once per process
def register() -> None:
    """Register our models with ESPnet's tasks, and our data types.

    Raises:
        ValueError: If another plugin has taken a name; then nothing is registered.
    """
    modules = import_tasks()
    for name, module in modules.items():
        _refuse_taken_names(TASKS[name], module)
    for name, module in modules.items():
        _extend(TASKS[name], module)
    types = register_data_types()
    # Not by logging: ESPnet sets that up later, and every log should show this line.
    print(
        f"espnet_mvq {__version__}: registered model 'mvq' (tasks "
        f"{', '.join(modules)}), data types {', '.join(types)}",
        file=sys.stderr,
    )


def import_tasks() -> Dict[str, ModuleType]:
    """Import ESPnet's tasks, all at once: nearly all of the time goes to shared code.

    Returns:
        Modules by name. Tasks that an older ESPnet lacks are left out, and ssl without
        a choice of losses.
    """
    modules = {name: import_task(name) for name in TASKS}
    return {
        name: module
        for name, module in modules.items()
        if module is not None
        and (not TASKS[name].pretrains or hasattr(module, "loss_choices"))
    }


def import_task(name: str) -> Optional[ModuleType]:
    """Import the module of a task; None if the installed ESPnet is older than it."""
    try:
        return importlib.import_module(f"espnet2.tasks.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"espnet2.tasks.{name}":
            raise
        return None


def find_task(name: str) -> Type:
    """Return the class of one of ESPnet's tasks.

    Raises:
        ValueError: If the installed ESPnet is older than the task.
    """
    module = import_task(name)
    if module is None:
        raise ValueError(f"the installed ESPnet has no task {name}")
    return getattr(module, TASKS[name].class_name)


def _refuse_taken_names(row: ESPnetTask, module: ModuleType) -> None:
    """Raise ValueError if another plugin has registered one of our names."""
    for name in row.models:
        other = module.model_choices.classes.get(name)
        if other is not None:
            raise ValueError(
                f"model {name!r} is already registered in ESPnet, by "
                f"{other.__module__}.{other.__name__}; expected the name to be free in "
                f"{module.__name__}"
            )


def _extend(row: ESPnetTask, module: ModuleType) -> None:
    """Add our models to a task and wrap its `main_worker` and `build_model`."""
    task, only_model = getattr(module, row.class_name), None
    for name, base in row.models.items():
        models = module.model_choices.classes
        models[name] = _derive_model(models[base])
    if row.only_model:
        only_model = _derive_model(getattr(module, row.only_model))
    _wrap_main_worker(row, task)
    _wrap_build_model(row, module, task, only_model)
    if row.pretrains:
        from espnet_mvq.plugin.pretraining import MVQPretrainingLoss, wrap_collate_fn

        module.loss_choices.classes["mvq"] = MVQPretrainingLoss
        wrap_collate_fn(row, task)


def _derive_model(base: Type[torch.nn.Module]) -> Type[torch.nn.Module]:
    """Derive our model from one of ESPnet: MVQASRModel from ESPnetASRModel."""
    return make_mvq_model(base, "MVQ" + base.__name__.removeprefix("ESPnet"))


def _wrap_main_worker(row: ESPnetTask, task: Type) -> None:
    """Complete `mvq_conf` from the metadata before a training starts.

    ESPnet has no hook between its options and `build_model`. Every training process
    starts in `main_worker`, spawned ones too, except those of Lightning. Inference
    does not run it: its `config.yaml` is the completed one of the training.
    """
    original = task.main_worker.__func__

    @functools.wraps(original)
    def main_worker(cls: Type, args: argparse.Namespace) -> None:
        if row.uses_mvq(vars(args)):
            complete_mvq_conf(args)
        original(cls, args)

    task.main_worker = classmethod(main_worker)


def _wrap_build_model(
    row: ESPnetTask,
    module: ModuleType,
    task: Type,
    only_model: Optional[Type[torch.nn.Module]],
) -> None:
    """Have `build_model` build our model where the options ask for it.

    Args:
        row: Row of the task.
        module: Module of the task.
        task: Class of the task.
        only_model: Our model of a task without `--model`. ESPnet's `build_model` takes
            the class from its module, so it finds ours there during the call.
    """
    original = task.build_model.__func__

    @functools.wraps(original)
    def build_model(cls: Type, args: argparse.Namespace) -> torch.nn.Module:
        if row.pretrains:
            refuse_lone_loss(args, row.uses_mvq(vars(args)))
        if not row.uses_mvq(vars(args)):
            return original(cls, args)
        if _trains_with_lightning(args):
            complete_mvq_conf(args)
        init = getattr(args, "init", None)
        if not hasattr(module, "initialize"):
            init = None  # asr_transducer refuses --init, and still has to
        with contextlib.ExitStack() as stack:
            if only_model is not None:
                stack.enter_context(replaced(module, row.only_model, only_model))
            if init is not None:
                stack.enter_context(replaced(args, "init", None))
            model = original(cls, args)
            # Before the training starts: the model alone does not know the data.
            refuse_unweighable(model, args)
        if init is not None:
            _initialize_student(model, init)
        return model

    task.build_model = classmethod(build_model)


def _trains_with_lightning(args: argparse.Namespace) -> bool:
    """Whether this is `espnet2.bin.lightning_train`, which skips `main_worker`.

    Inference with a model of Lightning has `lightning_conf` in its options too, but
    does not import ESPnet's module for Lightning.
    """
    return hasattr(args, "lightning_conf") and _LIGHTNING_MODULE in sys.modules


def _initialize_student(model: torch.nn.Module, init: str) -> None:
    """Draw the student's weights for `--init` as in a model without the plugin.

    ESPnet draws for all parameters before it draws embeddings again. With ours among
    them, the student would not start from the baseline's weights. Ours keep the values
    they were built with.
    """
    mvq, model.mvq = model.mvq, None
    initialize(model, init)
    model.mvq = mvq

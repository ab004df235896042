"""The tasks of ESPnet that get the MVQ loss, and how each is told to use it."""

import argparse
import functools
import importlib
from typing import Callable, Dict, List, Type

import torch

from espnet_mvq.plugin.model import make_mvq_model


class MVQTask:
    """A task of ESPnet.

    Args:
        module_name: Its module below `espnet2.tasks`.
        task_name: Its class.

    Attributes:
        name: Name of the module.
        module: The module.
        task: The class.
    """

    def __init__(self, module_name: str, task_name: str):
        self.name = module_name
        self.module = importlib.import_module(f"espnet2.tasks.{module_name}")
        self.task = getattr(self.module, task_name)

    def check(self) -> None:
        """Raise ValueError if another plugin has taken a name of ours."""

    def add_models(self) -> None:
        """Make our models known to the task."""
        raise NotImplementedError

    def uses_mvq(self, args: argparse.Namespace) -> bool:
        """Say whether these options of the task ask for a model of ours."""
        raise NotImplementedError


class TaskWithModels(MVQTask):
    """A task with a table of models: `--model mvq` is one more of them.

    Args:
        module_name: Its module below `espnet2.tasks`.
        task_name: Its class.
        models: Our models' names, and of each the task's own model below it.
    """

    def __init__(self, module_name: str, task_name: str, models: Dict[str, str]):
        super().__init__(module_name, task_name)
        self.models = models
        self._table = self.module.model_choices.classes

    def check(self) -> None:
        """See `MVQTask.check`."""
        for name in self.models:
            if name in self._table:
                other = self._table[name]
                raise ValueError(
                    f"model {name!r} is already registered in ESPnet, by "
                    f"{other.__module__}.{other.__name__}; expected the name to be "
                    f"free in espnet2.tasks.{self.name}"
                )

    def add_models(self) -> None:
        """See `MVQTask.add_models`."""
        for name, base in self.models.items():
            self._table[name] = _mvq_model(self._table[base])

    def uses_mvq(self, args: argparse.Namespace) -> bool:
        """See `MVQTask.uses_mvq`."""
        return getattr(args, "model", None) in self.models


class TaskWithOneModel(MVQTask):
    """A task that knows its one model alone and has no `--model`.

    `mvq_conf` in its `model_conf` asks for ours. `build_model` takes the model's class
    from its module; while it builds a model of ours, it finds ours there.

    Args:
        module_name: Its module below `espnet2.tasks`.
        task_name: Its class.
        model_name: The model's class.
    """

    def __init__(self, module_name: str, task_name: str, model_name: str):
        super().__init__(module_name, task_name)
        self._model_name = model_name

    def add_models(self) -> None:
        """See `MVQTask.add_models`."""
        original = self.task.build_model.__func__
        model = _mvq_model(getattr(self.module, self._model_name))

        @functools.wraps(original)
        def build_model(cls: Type, args: argparse.Namespace) -> torch.nn.Module:
            if not self.uses_mvq(args):
                return original(cls, args)
            stock = getattr(self.module, self._model_name)
            setattr(self.module, self._model_name, model)
            try:
                return original(cls, args)
            finally:
                setattr(self.module, self._model_name, stock)

        self.task.build_model = classmethod(build_model)

    def uses_mvq(self, args: argparse.Namespace) -> bool:
        """See `MVQTask.uses_mvq`."""
        return "mvq_conf" in (getattr(args, "model_conf", None) or {})


def _mvq_model(base: Type[torch.nn.Module]) -> Type[torch.nn.Module]:
    """Derive our model from one of ESPnet: MVQASRModel from ESPnetASRModel."""
    return make_mvq_model(base, "MVQ" + base.__name__.removeprefix("ESPnet"))


_TASKS: List[Callable[[], MVQTask]] = [
    functools.partial(
        TaskWithModels, "asr", "ASRTask", {"mvq": "espnet", "mvq_maskctc": "maskctc"}
    ),
    functools.partial(TaskWithModels, "slu", "SLUTask", {"mvq": "espnet"}),
    functools.partial(TaskWithModels, "s2t", "S2TTask", {"mvq": "espnet"}),
    # Its "espnet" does not take what the task gives to models.
    functools.partial(TaskWithModels, "s2t_ctc", "S2TTask", {"mvq": "espnet_ctc"}),
    functools.partial(
        TaskWithOneModel,
        "asr_transducer",
        "ASRTransducerTask",
        "ESPnetASRTransducerModel",
    ),
    functools.partial(TaskWithOneModel, "st", "STTask", "ESPnetSTModel"),
]


def find_tasks() -> List[MVQTask]:
    """Import the tasks.

    One costs as much as all: what takes seconds is what they share.

    Returns:
        The tasks there are; older ESPnets lack some.
    """
    tasks = []
    for make_task in _TASKS:
        try:
            tasks.append(make_task())
        except ModuleNotFoundError as error:
            if error.name != f"espnet2.tasks.{make_task.args[0]}":
                raise
    return tasks

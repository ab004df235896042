"""ESPnet's tasks and models that can learn from teachers: one table, without ESPnet."""

from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional


@dataclass(frozen=True)
class ESPnetTask:
    """A task of ESPnet.

    Attributes:
        class_name: Class in the task's module.
        models: For a task with `--model`: our names of models, and ESPnet's name of
            the model that each one extends.
        only_model: For a task without `--model`: class of its one model. `mvq_conf`
            in `model_conf` selects ours.
        pretrains: Whether the task trains an encoder alone, for a later training to
            start from.
    """

    class_name: str
    models: Mapping[str, str] = field(default_factory=dict)
    only_model: Optional[str] = None
    pretrains: bool = False

    def uses_mvq(self, options: Mapping[str, Any]) -> bool:
        """Whether a training with these options has a model of ours."""
        if self.only_model:
            return "mvq_conf" in (options.get("model_conf") or {})
        return options.get("model") in self.models


# By module below `espnet2.tasks`
TASKS: Dict[str, ESPnetTask] = {
    "asr": ESPnetTask("ASRTask", {"mvq": "espnet", "mvq_maskctc": "maskctc"}),
    "slu": ESPnetTask("SLUTask", {"mvq": "espnet"}),
    "s2t": ESPnetTask("S2TTask", {"mvq": "espnet"}),
    # The task's other model, "espnet", does not accept the task's own arguments.
    "s2t_ctc": ESPnetTask("S2TTask", {"mvq": "espnet_ctc"}),
    "asr_transducer": ESPnetTask(
        "ASRTransducerTask", only_model="ESPnetASRTransducerModel"
    ),
    "st": ESPnetTask("STTask", only_model="ESPnetSTModel"),
    "ssl": ESPnetTask("SSLTask", {"mvq": "espnet"}, pretrains=True),
}
# Tasks whose models are decoded
DECODED = tuple(name for name, task in TASKS.items() if not task.pretrains)

"""espnet_mvq: multi-codebook vector quantization knowledge distillation for ESPnet.

Importing the package changes nothing and loads nothing else; `register()` adds the
plugin to ESPnet, and `mvq_conf()` makes its options.
"""

import os
from typing import Any, Dict, Union

__version__ = "0.1.0.dev0"


def register() -> None:
    """Make `model: mvq` and the data type `mvq_ark` known to ESPnet.

    Safe to call more than once. The launcher `python3 -m espnet_mvq.run` calls it in
    every process; notebooks and scripts that use ESPnet directly call it themselves.

    Raises:
        ImportError: If there is no ESPnet, or it is too old.
        ValueError: If another plugin has taken a name.
    """
    from espnet_mvq.plugin.espnet_version import check_espnet

    check_espnet()
    from espnet_mvq.plugin.registration import register as register_plugin

    register_plugin()


def mvq_conf(source: Union[str, os.PathLike], **options: Any) -> Dict[str, Any]:
    """Make the complete `mvq_conf` of a student, for ESPnet-EZ, notebooks and scripts.

    Trainings that read the indexes as the data type `mvq_ark` complete their options
    themselves. A model that is built in Python, or a data set of one's own, needs them
    complete.

    Args:
        source: `codebook_indexes.json`, the scp beside it, or the data folder of both;
            or `embeddings.json` or `posteriors.json`, or its scp. The name of the file
            is the name of the data in the batches. If it is not `codebook_indexes`, nor
            `posteriors` with `loss: posteriors`, the result has the form
            `{"targets": {NAME: {...}}}`, and several can be joined.
        **options: Options of `mvq_conf`, as in a yaml: `weight`, `layer` and so on; see
            docs/training.md.

    Returns:
        The given options, and those that the metadata give: number and size of
        codebooks, quantizer id, sample rate (Hz), frame shift and offset (samples),
        level, and for embeddings their dimension, for posteriors their tokens.

    Raises:
        FileNotFoundError: If there are no metadata.
        ValueError: If metadata are damaged or of another kind, or if options are
            unknown, have bad values or disagree with the metadata.

    Example:
        >>> conf = mvq_conf("dump/raw/train/codebook_indexes.json", layer=6)
        >>> train_config["model"] = "mvq"
        >>> train_config["model_conf"]["mvq_conf"] = conf
    """
    from espnet_mvq.plugin.completion import make_mvq_conf

    return make_mvq_conf(source, **options)

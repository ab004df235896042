"""espnet_mvq: multi-codebook vector quantization knowledge distillation for ESPnet.

Importing the package changes nothing; `register()` adds the plugin to ESPnet.
"""

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

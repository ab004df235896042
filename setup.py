"""Packaging of espnet_mvq."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

requirements = [
    # The host: 202511 for Python 3.10 and 3.11, 202611 for 3.12. The former asks for
    # setuptools < 74, so pip picks a torch that can live with that; espnet_mvq itself
    # asks for no version of torch.
    "espnet>=202511",
    "torch",
    "torchaudio",  # ESPnet's front ends, s3prl
    "numpy",
    "numba",  # compiled code search on CPUs
    "pyyaml",  # configurations
    "ruamel.yaml",  # configurations with their comments
    "kaldiio",  # arks of codebook indexes
    "safetensors",  # quantizer files
    "sentencepiece",  # token lists
    "soundfile",  # audio
    "tqdm",  # progress bars
    "jiwer>=4",  # word and character error rates
    "jinja2",  # the page of a report
    # What ESPnet's training imports, or its recipes use, without its wheel asking for
    # it (202511 leaves out the next three, 202611 all four):
    "tensorboard",  # its trainer
    "matplotlib",  # its trainer
    "resampy",  # its speed perturbation
    "editdistance",  # its error rates in validation
]
extras = {
    # The maintained fork: the original fails to import with torchaudio >= 2.9
    "s3prl": ["espnet-s3prl"],
    "transformers": ["transformers"],
    "docs": [
        "mkdocs<2",  # builds the site; version 2 has no hooks
        "mkdocs-material",  # its theme, with search; loads nothing from other hosts
        "mkdocstrings[python]",  # API pages from the docstrings, without importing them
    ],
    # ESPnet-EZ imports ESPnet's singing synthesis, which needs it without asking for it
    "ez": ["six"],
    "dev": [
        "pytest",
        "pytest-timeout",
        "pytest-xdist",  # runs the suite in two processes
        "black",
        "isort",
        "flake8",
        "multi_quantization==0.1.1",  # the library whose quantizers we can read
        "faiss-cpu",  # quantizers to compare with
        "nbclient",  # the tests run the notebooks of docs/
        "ipykernel",  # Jupyter's Python, for nbclient
        "six",  # ESPnet-EZ, as above
    ],
}
extras["dev"] += extras["docs"]  # tests build the site
extras["benchmark"] = ["faiss-cpu", "multi_quantization==0.1.1"]  # to compare with
extras["all"] = sorted(
    {name for key in extras if key != "benchmark" for name in extras[key]}
)

setup(
    name="espnet-mvq",
    version=re.search(
        r'^__version__ = "(.+)"$',
        (ROOT / "espnet_mvq" / "__init__.py").read_text(encoding="utf-8"),
        re.MULTILINE,
    ).group(1),
    description="Multi-codebook vector quantization knowledge distillation for ESPnet",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["espnet_mvq", "espnet_mvq.*"]),
    package_data={
        "espnet_mvq": ["scripts/*.sh", "**/templates/*", "quantization/README.md"]
    },
    entry_points={
        "console_scripts": [
            "mvq.sh = espnet_mvq.__main__:run_script",
            "run_mvq.sh = espnet_mvq.__main__:run_script",
        ]
    },
    python_requires=">=3.10",
    install_requires=requirements,
    extras_require=extras,
    keywords=(
        "speech recognition, knowledge distillation, vector quantization, ESPnet, ASR"
    ),
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)

"""Commands, configurations, Python code and messages on the pages.

Blocks with the word `notest` behind the language need a network or a big model; only
the syntax of their shell is checked.
"""

import argparse
import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from builders import MVQ_CONF, write_indexes
from corpus_builders import save_transformers

from espnet_mvq.quantization import Quantizer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "egs").glob("*/asr1/README.md"))
PAGES.append(ROOT / "espnet_mvq" / "quantization" / "README.md")
BLOCK = re.compile(r"^```(\w+)( notest)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPTS = ROOT / "espnet_mvq" / "scripts"
# Options of ESPnet's asr.sh, which is not in its wheel, that the pages use
ASR_SH = "stage stop_stage python ngpu num_nodes asr_config asr_tag asr_args "
ASR_SH += "use_streaming use_lm inference_config"
# Programs whose options are not ours
OTHERS = ". cd cp git pip export touch".split()


def blocks(language, pages=PAGES):
    """Return pages, blocks and whether tests leave them out."""
    return [
        (path.relative_to(ROOT), text, bool(notest))
        for path in pages
        for kind, notest, text in BLOCK.findall(path.read_text(encoding="utf-8"))
        if kind == language
    ]


def script_options(path):
    """Return the variables that a script sets before it parses its options."""
    text = path.read_text(encoding="utf-8").partition("parse_options.sh")[0]
    return set(re.findall(r"^(\w+)=", text, re.MULTILINE))


def check_options(words, known):
    """Check the names of a command's options."""
    names = {w[2:].replace("-", "_") for w in words if re.fullmatch(r"--[\w-]+", w)}
    assert names <= {*known, "help"}, names - known


def check_module(module, words):
    """Check the options of `python3 -m MODULE`."""
    if module == "espnet_mvq":
        importlib.import_module("espnet_mvq.__main__").main(words)
    elif module == "espnet_mvq.run":
        assert words[0] == "-m"
        check_module(words[1], words[2:])
    else:
        assert importlib.util.find_spec(module), module
        if module.startswith("espnet_mvq."):
            importlib.import_module(module).get_parser().parse_args(words)


def check_command(page, words):
    """Check one command of a page."""
    while re.match(r"\w+=", words[0]):  # environment
        words = words[1:]
    program, *words = words
    name = Path(program).name or program
    if name == "python3" and words[0] == "-m":
        check_module(words[1], words[2:])
    elif name == "python3" and words[0] == "-c":
        ast.parse(words[1])
    elif name == "python3":
        assert (ROOT / page.parent / words[0]).is_file(), words[0]
    elif name == "mvq.sh":
        check_options(words, script_options(SCRIPTS / "mvq.sh"))
    elif name == "make":
        targets = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert f"\n{words[0]}:" in targets, words[0]
    elif name == "run_mvq.sh":  # passes other options on
        own = script_options(SCRIPTS / "run_mvq.sh")
        check_options(words, own.union(ASR_SH.split()))
    elif name.endswith(".sh"):
        paths = [ROOT / page.parent / program, ROOT / program]
        path = next((path for path in paths if path.is_file()), None)
        assert path or name == "run.sh", program
        if path and name == "run.sh":  # calls the template of our recipes
            path = ROOT / "egs/TEMPLATE/asr1/asr_mvq.sh"
        check_options(words, script_options(path) if path else set(ASR_SH.split()))
    else:
        assert name in OTHERS, program


def exit_with_message(parser, message):
    """Fail with the message of argparse in place of an exit."""
    pytest.fail(f"{parser.prog}: {message}")


def test_shell_commands(monkeypatch):
    monkeypatch.setattr(argparse.ArgumentParser, "error", exit_with_message)
    for page, text, notest in blocks("bash"):
        subprocess.run(["bash", "-n", "-c", text], check=True)
        lines = [] if notest else text.replace("\\\n", " ").splitlines()
        for line in lines:
            words = shlex.split(line, comments=True)
            if words:
                check_command(page, words)


def test_commands_within_the_text(monkeypatch):
    """Names of options; values and required options may be missing there."""
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for command in re.findall(r"`([^`]+)`", text):
            words = command.split()
            if not words:
                continue
            if words[:2] == ["python3", "-m"] and "espnet_mvq.bin" in command:
                parser = importlib.import_module(words[2]).get_parser()
                known = {name.lstrip("-") for name in parser._option_string_actions}
            elif words[0] == "mvq.sh":
                known = script_options(SCRIPTS / "mvq.sh")
            else:
                continue
            check_options(words, known)


def test_configurations():
    """Every `mvq_conf` of a block is one that the training accepts."""
    from espnet_mvq.plugin.config import parse_targets, parse_weighting

    count = 0
    for page, text, _ in blocks("yaml"):
        # Some blocks are the part below model_conf.
        text = f"model_conf:\n{text}" if text.startswith(" ") else text
        conf = (yaml.safe_load(text).get("model_conf") or {}).get("mvq_conf")
        if conf:
            parse_targets({**MVQ_CONF, "dim": 8, "token_list": ["a"], **conf})
            parse_weighting(conf)
            count += 1
    assert count >= 5


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Make the files that the Python code of the pages reads; work in their folder."""
    data, mvq = tmp_path / "dump/raw/train", tmp_path / "dump/mvq/teacher_layer4_cb8"
    data.mkdir(parents=True)
    mvq.mkdir(parents=True)
    torch.manual_seed(0)
    quantizer = Quantizer(torch.randn(8, 4, 192))
    quantizer.save(mvq / "quantizer.safetensors")
    quantizer.to_multi_quantization(tmp_path / "quantizer.pt")
    frames = torch.randint(4, (112, 8)).numpy()
    write_indexes(
        data, {"100-1100-0000": frames}, num_codebooks=8, quantizer_id=quantizer.id
    )
    whisper = tmp_path / "openai/whisper-tiny.en"
    whisper.parent.mkdir()
    save_transformers(whisper, "Whisper", "Encoder", encoder_layers=4)
    monkeypatch.chdir(tmp_path)


PYTHON = blocks("python", [p for p in PAGES if p.parent.name == "docs"])


@pytest.mark.parametrize("page", sorted({str(page) for page, _, _ in PYTHON}))
def test_python_code_runs(recipe, page):
    for name, text, notest in PYTHON:
        if str(name) == page and not notest:
            exec(compile(text, page, "exec"), {})


def test_messages_are_those_of_the_code():
    """`...` stands for parts that vary."""
    import espnet2

    folder = Path(espnet2.__file__).parent / "train"
    sources = [*(ROOT / "espnet_mvq").rglob("*.py"), folder / "trainer.py"]
    sources.append(folder / "iterable_dataset.py")
    texts = set()
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", "...") for part in node.values)
                parts = (part if isinstance(part, str) else "..." for part in parts)
                texts.add("".join(parts))
    page = ROOT / "docs/troubleshooting.md"
    messages = [text.strip() for _, text, _ in blocks("text", [page])]
    for message in messages:
        if not message.startswith("argument --model"):  # argparse and ESPnet's models
            parts = ".*".join(re.escape(p.strip()) for p in message.split("..."))
            assert any(re.search(parts, text) for text in texts), message
    assert len(messages) > 10

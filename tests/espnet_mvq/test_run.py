"""The launcher is the interpreter, with the plugin registered."""

import io
import os
import sys
import types
from pathlib import Path

import pytest
import yaml
from builders import ROOT, run_python


def run(*arguments, cwd, module_paths=(), **options):
    """Run `python -m espnet_mvq.run` with these arguments."""
    words = "-m", "espnet_mvq.run", *arguments
    return run_python(*words, cwd=cwd, folders=module_paths, **options)


def test_command_string_with_arguments_and_exit_code(tmp_path):
    code = "import sys; print(sys.argv); sys.exit(3)"
    done = run("-c", code, "a b", "-m", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "['-c', 'a b', '-m']\n")
    assert done.stderr == ""


def test_script_with_arguments(tmp_path):
    (tmp_path / "x.py").write_text("import sys; print(__name__, sys.argv[1:])")
    done = run("x.py", "--option", "-", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "__main__ ['--option', '-']\n")


def test_interpreter_options_and_other_modules(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import sys\nif __name__ == '__main__': sys.exit(len(sys.argv) + 40)\n"
    )
    assert run("-m", "mine", "a", cwd=tmp_path).returncode == 42
    assert run("-V", cwd=tmp_path).stdout.startswith("Python 3")
    assert run("-m", "no_such_module", cwd=tmp_path).returncode == 1
    assert run("-m", cwd=tmp_path).returncode == 2


def test_standard_input_is_passed_on(tmp_path):
    done = run(cwd=tmp_path, input="print(6 * 7)")
    assert done.stdout == "42\n"


# Replaces the registration, which takes long, in every process that starts
SITECUSTOMIZE = """
import espnet2.bin
import espnet_mvq
espnet2.bin.__path__.append({folder!r})
espnet_mvq.registered = 0
def register():
    espnet_mvq.registered += 1
espnet_mvq.register = register
"""


def run_module(folder, code, *arguments):
    """Run code as the module `espnet2.bin.written` through the launcher."""
    (folder / "written.py").write_text(code)
    site = SITECUSTOMIZE.format(folder=str(folder))
    (folder / "sitecustomize.py").write_text(site)
    words = "-m", "espnet2.bin.written", *arguments
    return run(*words, cwd=folder, module_paths=[folder])


SPAWNING_MODULE = """
import multiprocessing
import sys
import espnet_mvq

def child(queue):
    queue.put(espnet_mvq.registered)

def main(cmd=None):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    print("registered:", espnet_mvq.registered, queue.get(timeout=60), sys.argv[1:])
    process.join()
    sys.exit(5)
"""


def test_spawned_process_registers_too(tmp_path):
    """ESPnet spawns one process per GPU from its modules `espnet2.bin.*`."""
    done = run_module(tmp_path, SPAWNING_MODULE, "--x")
    assert done.stdout == "registered: 1 1 ['--x']\n", done.stderr
    assert done.returncode == 5


# Registered, as above, in every interpreter; trains in a process group of one rank.
GROUP_MODULE = """
import atexit
import torch.distributed as distributed

def main(cmd=None):
    distributed.init_process_group(
        "gloo", init_method="file://{file}", rank=0, world_size=1
    )
    atexit.register(lambda: print("at exit:", distributed.is_initialized()))
"""


def test_process_group_is_destroyed_before_the_interpreter_ends(tmp_path):
    done = run_module(tmp_path, GROUP_MODULE.format(file=tmp_path / "init"))
    assert (done.returncode, done.stdout) == (0, "at exit: False\n"), done.stderr


def test_print_config_shows_our_options(monkeypatch):
    from espnet2.tasks.asr import ASRTask

    import espnet_mvq

    espnet_mvq.register()
    # ESPnet takes from it the model whose options it prints
    monkeypatch.setattr(sys, "argv", ["asr_train", "--model", "mvq"])
    output = io.StringIO()
    ASRTask.print_config(file=output)
    config = yaml.safe_load(output.getvalue())
    assert config["model"] == "mvq"
    assert config["model_conf"]["ctc_weight"] == 0.5
    assert config["model_conf"]["mvq_conf"]["weight"] == 1.0
    assert config["model_conf"]["mvq_conf"]["layer"] == -1


def test_help_lists_our_model(monkeypatch, capsys):
    from espnet_mvq.run import main

    monkeypatch.setattr(
        sys, "argv", ["run.py", "-m", "espnet2.bin.asr_train", "--help"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    output = capsys.readouterr().out
    choices = output[output.index("--model ") :].split("--model_conf")[0]
    assert "mvq" in choices


@pytest.mark.parametrize("name", ["__mp_main__", "somewhere"])
def test_only_the_main_module_of_a_spawned_process_registers(monkeypatch, name):
    import runpy

    import espnet_mvq

    called = []
    monkeypatch.setattr(espnet_mvq, "register", lambda: called.append(1))
    runpy.run_path(str(ROOT / "espnet_mvq" / "run.py"), run_name=name)
    assert called == ([1] if name == "__mp_main__" else [])


def test_commands_that_build_no_model_do_not_wait_for_the_plugin(tmp_path):
    site = "import espnet_mvq\nespnet_mvq.register = lambda: exit('registered')\n"
    (tmp_path / "sitecustomize.py").write_text(site)
    arguments = "-m", "espnet2.bin.tokenize_text", "--help"
    done = run(*arguments, cwd=tmp_path, module_paths=[tmp_path])
    assert done.returncode == 0 and "--token_type" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "name",
    ["asr_transducer_train", "asr_transducer_inference", "st_train", "s2t_train"],
)
def test_commands_of_all_tasks_get_the_plugin(name):
    from espnet_mvq.run import _takes_plugin

    assert _takes_plugin(["-m", f"espnet2.bin.{name}", "--x"])


def test_commands_without_models_are_those_of_espnet():
    import espnet2.bin

    from espnet_mvq.run import _WITHOUT_MODEL

    folder = Path(espnet2.bin.__path__[0])
    for name in _WITHOUT_MODEL:
        assert "espnet2.tasks" not in (folder / f"{name}.py").read_text(), name


def test_ranks_that_lightning_starts_are_trainings_too(monkeypatch):
    """It starts them by the module it runs in, without the one that it was given."""
    from espnet_mvq import run as launcher

    ran = []
    module = types.SimpleNamespace(
        __file__="lightning_train.py", main=lambda: ran.append(list(sys.argv))
    )
    monkeypatch.setitem(sys.modules, "espnet2.bin.lightning_train", module)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.delenv("ESPNET_MVQ_IN_LIGHTNING", raising=False)
    launcher.main(["-m", "espnet2.bin.lightning_train", "--task", "asr"])
    assert os.environ["ESPNET_MVQ_IN_LIGHTNING"] == "true"
    launcher.main(["--task", "asr"])
    monkeypatch.delenv("ESPNET_MVQ_IN_LIGHTNING")
    assert ran == [["lightning_train.py", "--task", "asr"]] * 2

"""Hooks of mkdocs: files of the repository outside docs/, and pages made from the code.

Files of the repository that pages link to become part of the site, with their path in
the repository, so that one relative link works on GitHub and on the site. A line
`<!-- generated: NAME -->` is replaced by text from the code, `<!-- api: NAME -->` by
the docstrings of an object.
"""

import argparse
import ast
import dataclasses
import importlib
import inspect
import posixpath
import re
import textwrap
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple, Type

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# A link of Markdown: the text, the path, and the anchor
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
# A block that tests do not run; the word is no name of a language.
NOTEST = re.compile(r"^(```\w+) notest$", re.MULTILINE)
MARKER = re.compile(r"^<!-- (generated|api): (\S+) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository that the pages and the navigation name."""
    waiting = [file for file in files if file.is_documentation_page()]
    for path in re.findall(r"[\w/]+/\w+\.md", str(config.nav)):
        waiting.append(_add(files, config, path))
    while waiting:
        file = waiting.pop()
        text = Path(file.abs_src_path).read_text(encoding="utf-8")
        for _, link, _ in LINK.findall(text):
            path = _target(file.src_uri, link)
            if path.startswith("docs/") or files.get_file_from_path(path):
                continue
            if (ROOT / path).is_file():
                added = _add(files, config, path, InclusionLevel.NOT_IN_NAV)
                if added.is_documentation_page():
                    waiting.append(added)
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Adapt links to the site, and replace the markers."""
    here = posixpath.dirname(page.file.src_uri)

    def adapt(match: re.Match) -> str:
        path = _target(page.file.src_uri, match[2]).removeprefix("docs/")
        return f"{match[1]}{posixpath.relpath(path, here or '.')}{match[3]}"

    def generate(match: re.Match) -> str:
        return f"::: {match[2]}" if match[1] == "api" else GENERATED[match[2]]()

    markdown = NOTEST.sub(r"\1", LINK.sub(adapt, markdown))
    return MARKER.sub(generate, markdown)


def _add(
    files: Files,
    config: MkDocsConfig,
    path: str,
    inclusion: InclusionLevel = InclusionLevel.UNDEFINED,
) -> File:
    """Add a file of the repository to the site."""
    source = str(ROOT / path)
    file = File.generated(config, path, abs_src_path=source, inclusion=inclusion)
    files.append(file)
    return file


def _target(src_uri: str, link: str) -> str:
    """Path in the repository of a link's target; a folder stands for its README.md."""
    source = src_uri if (ROOT / src_uri).is_file() else f"docs/{src_uri}"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return f"{path}/README.md" if (ROOT / path / "README.md").is_file() else path


class DocstringSections(griffe.Extension):
    """Adapts our docstrings to the parser, which reads other words as notes."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the sections "Example:" and "Source: ..."."""
        if obj.docstring:
            text = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
            obj.docstring.value = re.sub(r"(?m)^Source: ", "**Source:** ", text)


# --- pages made from the code


def mvq_conf_table() -> str:
    """Return the tables of the options of `mvq_conf`."""
    from espnet_mvq.distillation.masking import Mask
    from espnet_mvq.distillation.schedules import WeightSchedule
    from espnet_mvq.distillation.weighting import WEIGHTINGS
    from espnet_mvq.plugin.config import MVQConfig

    parts = ["## Options of a target", _options(MVQConfig)]
    parts += ["## schedule", _summary(WeightSchedule), _options(WeightSchedule)]
    parts += ["## mask", _summary(Mask), _options(Mask)]
    parts += ["## weighting"]
    for name, kind in WEIGHTINGS.items():
        parts += [f"### type: {name}", _summary(kind), _options(kind)]
    return "\n\n".join(parts)


def _options(config: Type) -> str:
    """Return a table of the fields of a dataclass, from its docstring."""
    descriptions = _attributes(config)
    rows = []
    for field in dataclasses.fields(config):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        value = "" if default in (None, {}) else f"`{_yaml_value(default)}`"
        rows.append((f"`{field.name}`", value, descriptions[field.name]))
    return _table(("option", "default", "meaning"), rows)


def _yaml_value(value: Any) -> Any:
    """Return a default as a yaml has it."""
    return str(value).lower() if isinstance(value, bool) else value


def _summary(documented: Type) -> str:
    """Return the docstring above its sections."""
    return re.split(r"\n(?:Attributes|Args|Source):", inspect.getdoc(documented))[0]


def _attributes(documented: Type) -> Dict[str, str]:
    """Return the section `Attributes` of a docstring, by name."""
    section = inspect.getdoc(documented).partition("Attributes:\n")[2]
    section = re.split(r"\n(?=\S)", section)[0]
    entries = re.split(r"\n(?=\S)", textwrap.dedent(section).strip())
    pairs = (" ".join(entry.split()).partition(": ") for entry in entries)
    return {name: text for name, _, text in pairs}


def command_tables() -> str:
    """Return the options of the scripts, and of the commands of `bin/`."""
    parts = []
    for name in ("mvq.sh", "run_mvq.sh"):
        parts += [f"## {name}", _script_table(ROOT / "espnet_mvq" / "scripts" / name)]
    for path in sorted((ROOT / "espnet_mvq" / "bin").glob("[a-z]*.py")):
        functions = ast.parse(path.read_text(encoding="utf-8")).body
        if not any(getattr(node, "name", None) == "get_parser" for node in functions):
            continue
        module = importlib.import_module(f"espnet_mvq.bin.{path.stem}")
        parser = module.get_parser()
        parts += [f"## {path.stem}", f"`python3 -m {module.__name__}`"]
        parts += [_escape(parser.description), _parser_table(parser)]
        if parser.epilog:
            parts.append(_escape(parser.epilog))
    return "\n\n".join(parts)


def _script_table(path: Path) -> str:
    """Return the options of a script, from the comments behind its variables."""
    text = path.read_text(encoding="utf-8").partition("help_message=")[0]
    rows = []
    for name, default, words in re.findall(
        r"^(\w+)=(\S*) +# (.+(?:\n +# .+)*)", text, re.MULTILINE
    ):
        default = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", default)
        words = re.sub(r"\n +# ", " ", words)
        rows.append((f"`--{name}`", f"`{default}`" if default else "", _escape(words)))
    return _table(("option", "default", "meaning"), rows)


def _parser_table(parser: argparse.ArgumentParser) -> str:
    """Return a table of the options of a command."""
    formatter = argparse.HelpFormatter(parser.prog)
    rows = []
    for action in parser._actions:
        if "--help" in action.option_strings:
            continue
        name = ", ".join(action.option_strings) or action.dest
        default = action.default if action.default not in (None, []) else ""
        if action.required:
            default = "required"
        elif isinstance(default, bool):
            default = ""
        elif default != "":
            default = f"`{default}`"
        words = formatter._expand_help(action) if action.help else ""
        if action.choices:
            words += " (" + ", ".join(f"`{choice}`" for choice in action.choices) + ")"
        rows.append((f"`{name}`", default, _escape(words)))
    return _table(("option", "default", "meaning"), rows)


def _escape(text: str) -> str:
    """Escape placeholders such as `<...>`, and the sign between columns."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _table(head: Tuple[str, ...], rows: List[Tuple[str, ...]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


GENERATED: Dict[str, Callable[[], str]] = {
    "mvq_conf": mvq_conf_table,
    "commands": command_tables,
}

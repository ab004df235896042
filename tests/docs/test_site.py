"""The site that `make docs` builds."""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
# Attributes whose address a browser loads without a click
LOADED = {"src", "srcset", "data", "poster"}
CSS_ADDRESS = re.compile(r"""(?:url\(\s*['"]?|@import\s+['"])((?:https?:)?//[^'")]*)""")


class _Page(HTMLParser):
    """Anchors, links, loaded addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loaded, self.text = {""}, [], [], ""
        self.loads_code = []  # parts for which the theme's script loads from a host
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors.add(attrs.get("id") or "")
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag == "link" and attrs.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(attrs["href"])
        self.loaded += [v for name, v in attrs.items() if name in LOADED and v]
        self.loaded += CSS_ADDRESS.findall(attrs.get("style") or "")
        classes = (attrs.get("class") or "").split()
        if "mermaid" in classes or attrs.get("data-md-component") == "source":
            self.loads_code.append(tag)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site; return its pages by path."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    pages = {p: _Page(p.read_text(encoding="utf-8")) for p in folder.rglob("*.html")}
    return folder, pages


def test_nothing_is_loaded_from_other_hosts(site):
    folder, pages = site
    for path, page in pages.items():
        assert [a for a in page.loaded if urlsplit(a).netloc] == [], path
        assert page.loads_code == [], path
    for path in folder.rglob("*.css"):
        assert CSS_ADDRESS.findall(path.read_text(encoding="utf-8")) == [], path


def test_links_and_anchors_resolve(site):
    folder, pages = site
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links start at the root of the host
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path
            if parts.path:
                target = Path(os.path.normpath(path.parent / unquote(parts.path)))
                target = target / "index.html" if target.is_dir() else target
            anchors = pages[target].anchors if target in pages else {""}
            if not target.is_file() or unquote(parts.fragment) not in anchors:
                broken.append((str(path.relative_to(folder)), link))
    assert broken == []


def test_markdown_is_understood(site):
    """Blocks, tables and markers that Markdown did not understand stay text."""
    for path, page in site[1].items():
        for sign in ("```", "|---", "\n::: ", "<!--"):
            assert sign not in page.text, (path, sign)


def test_options_of_the_code_are_on_the_pages(site):
    from espnet_mvq.distillation.weighting import WEIGHTINGS
    from espnet_mvq.plugin.config import MVQConfig

    folder, pages = site
    words = re.findall(r"\w+", pages[folder / "mvq_conf.html"].text)
    options = {field.name for field in dataclasses.fields(MVQConfig)}
    assert options.union(WEIGHTINGS) <= set(words)
    text = pages[folder / "commands.html"].text
    package = ROOT / "espnet_mvq"
    script = (package / "scripts/mvq.sh").read_text(encoding="utf-8")
    script = script.partition("# General")[2].partition("help_message=")[0]
    options = {f"--{name}" for name in re.findall(r"^(\w+)=", script, re.MULTILINE)}
    for path in (package / "bin").glob("*.py"):
        module = importlib.import_module(f"espnet_mvq.bin.{path.stem}")
        if hasattr(module, "get_parser"):
            options.update(module.get_parser()._option_string_actions)
    missing = options.difference(("-h", "--help")).difference(text.split())
    assert {name for name in missing if f"{name}," not in text} == set()
    assert "%(default)s" not in text


def test_links_resolve_on_github():
    """Links of Markdown files are relative to the file."""
    broken = []
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)\s#]+)", path.read_text(encoding="utf-8")):
            if not urlsplit(link).scheme and not (path.parent / link).exists():
                broken.append((path.name, link))
    assert broken == []

"""What the site needs beyond docs/: README.md as its first page, and copies of the files that pages link to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PROJECT = Path(__file__).resolve().parent.parent
OUTSIDE = re.compile(r"\]\((?:\.\./)+((?:slurm|examples)/[\w./-]+|[A-Z]+[\w.]*)\)")
BESIDE = ("LICENSE", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md", "slurm/site.env")
"""Files of the project that pages link to."""


def on_config(config: Any, **_: Any) -> Any:
    """Give pages that mkdocs.yml does not list a place at the end of the navigation, so that none is out of reach."""
    pages = sorted(str(path.relative_to(PROJECT / "docs")) for path in (PROJECT / "docs").rglob("*.md"))
    listed = set(re.findall(r"[\w/.-]+\.md", str(config.nav)))
    if others := [page for page in pages if page not in listed]:
        config.nav.append({"More": others})
    return config


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the first page, and the files that pages link to outside of docs/."""
    files.append(File.generated(config, "index.md", content=as_first_page(_read("README.md"))))
    for name in BESIDE:
        text = _read(name)
        if name.endswith(".md"):
            files.append(File.generated(config, name.lower(), content=as_first_page(text)))
        else:
            files.append(File.generated(config, f"files/{name}.txt", content=text))
    for notebook in sorted((PROJECT / "examples").glob("*.ipynb")):
        files.append(
            File.generated(config, f"files/examples/{notebook.name}", content=notebook.read_text("utf-8"))
        )
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that lead out of docs/ lead to the site's copies."""
    up = "../" * page.file.src_uri.count("/")
    return OUTSIDE.sub(lambda found: f"]({up}{_address(found[1])})", markdown)


def as_first_page(text: str) -> str:
    """A page of the project's folder as one of docs/: links to docs/ and beside it lead where they should."""
    text = re.sub(r"\]\(docs/(reference|explanation)\)", r"](architecture.md)", text)
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(
        r"\]\(((?:examples/[\w.]+)|LICENSE|CITATION\.cff|CHANGELOG\.md|CONTRIBUTING\.md)\)",
        lambda found: f"]({_address(found[1])})",
        text,
    )


def _address(name: str) -> str:
    if name.endswith(".md"):
        return name.lower()
    return f"files/{name}" if name.endswith(".ipynb") else f"files/{name}.txt"


def _read(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")

"""Hooks of mkdocs that include other files of the repository in pages and adapt links to the site.

`<!-- include README.md -->` includes a file, and `<!-- include README.md: Results -->` includes one section of it.
`<!-- configuration -->` inserts the tables of all keys, and `<!-- examples -->` inserts all examples.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
INCLUDE = re.compile(r"<!-- include ([^:\s]+)(?:: ([^>]+))? -->")
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks": "benchmarks.md",
    "conf": "configuration.md",
}
"""The pages of files and folders outside `docs/`."""


def on_files(files: Files, config: Any) -> Files:
    """Add the figures and data of the benchmarks to the site."""
    from mkdocs.structure.files import File

    for path in sorted((ROOT / "benchmarks").iterdir()):
        if path.suffix in (".png", ".csv", ".json"):
            files.append(File.generated(config, f"benchmarks/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Replace the comments of a page with the content that they include, and its links with links within the site."""
    source = page.file.src_uri
    markdown = site_links(markdown, "docs", Path(source).parent.as_posix())
    markdown = INCLUDE.sub(lambda match: included(match[1], match[2], Path(source).parent.as_posix()), markdown)
    if "<!-- configuration -->" in markdown:
        markdown = markdown.replace("<!-- configuration -->", "\n".join(configuration()))
    if "<!-- examples -->" in markdown:
        markdown = markdown.replace("<!-- examples -->", "\n".join(examples()))
    return markdown


def included(name: str, heading: str | None, folder: str) -> str:
    """Return a file of the repository, or the section with this heading, with links for a page in `folder`."""
    text = (ROOT / name).read_text()
    if heading is not None:
        sections = re.split(r"^## ", text, flags=re.MULTILINE)
        text = next(f"## {section}" for section in sections if section.split("\n", 1)[0] == heading)
    return site_links(text, Path(name).parent.as_posix(), folder)


def site_links(markdown: str, source: str, folder: str) -> str:
    """Replace links relative to the folder `source` of the repository with links relative to `docs/<folder>`.

    Links between pages in `docs/` do not change.
    """

    def target(match: re.Match[str]) -> str:
        path = match[2]
        if ":" in path:  # another site
            return match[0]
        base = posixpath.join(source, folder) if source == "docs" else source
        path = posixpath.normpath(posixpath.join(base, path))
        if path.startswith("docs/"):
            path = path.removeprefix("docs/")
        elif path.startswith("examples/"):
            return f"{match[1]}{posixpath.relpath('examples.md', folder)}#{Path(path).stem})"
        else:
            path = PAGES.get(path, path)
        return f"{match[1]}{posixpath.relpath(path, folder)}{match[3]}"

    return LINK.sub(target, markdown)


def configuration() -> Iterator[str]:
    """Yield one table of keys for every group of the configuration."""
    from torchppo.pipelines.cli.keys.reference import reference

    def group_of(key: Any) -> str:
        return key.choice.split("=")[0]

    for group, keys in groupby(sorted(reference(), key=group_of), key=group_of):
        yield f"\n## {group or 'General'}\n"
        for choice, rows in groupby(keys, key=lambda key: key.choice):
            if choice:
                yield f"\n### `{choice}`\n"
            yield "| key | default | values | meaning |\n|---|---|---|---|"
            for row in rows:
                cells = (f"`{row.key}`", f"`{row.default}`", row.values, row.meaning.replace("<", "&lt;"))
                yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def examples() -> Iterator[str]:
    """Yield every example with its file name as the heading."""
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield f'\n## {path.stem}\n\n```python title="examples/{path.name}"\n{path.read_text()}```\n'

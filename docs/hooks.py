"""What makes one site of a repository: pages link to files outside of docs/, and the site takes those files along.

A page is written to be read in the repository too, where `../examples/own_task.py` leads to the file. On the site the same
link leads to a page that shows it. Pages of the navigation that lie beside docs/, such as CONTRIBUTING.md, are taken along as they are.
"""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

FENCED = re.compile(r"(^```.*?^```$)", re.M | re.S)
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
SHOWN = "source"
"""The folder of the site with files of the repository that are no pages."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie beside docs/, and a page for each file that is linked to."""
    top, pages = Path(config.config_file_path).parent, [file.src_uri for file in files.documentation_pages()]
    for name in sorted({name for name in _named(config.nav) if name not in pages}):
        files.append(File.generated(config, name, content=(top / name).read_text(encoding="utf-8")))
    linked: set[str] = set()
    for file in files.documentation_pages():
        _with_links(file.content_string, lambda target, page=file: linked.add(_in_repository(page, target)) or target)
    for name in sorted(linked):
        source = top / name
        if source.is_file() and (uri := _on_site(name, files)).startswith(f"{SHOWN}/"):
            language = {".py": "python", ".toml": "toml"}.get(source.suffix, "text")
            content = f"---\nsearch:\n  exclude: true\n---\n# {name}\n\n````{language}\n{source.read_text(encoding='utf-8')}\n````\n"
            files.append(File.generated(config, uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to files of the repository to their pages on the site."""
    here = page.file.src_uri
    if here.startswith(f"{SHOWN}/"):
        return markdown

    def on_site(target: str) -> str:
        uri = _on_site(_in_repository(page.file, target), files)
        return posixpath.relpath(uri, posixpath.dirname(here) or ".") if files.get_file_from_path(uri) else target

    return _with_links(markdown, on_site)


def _named(nav: object) -> list[str]:
    """The pages of a navigation, however deep."""
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else []
    return [name for part in inner for name in _named(part)]


def _with_links(markdown: str, change: Callable[[str], str]) -> str:
    """A text in which the targets of all relative links outside of code are changed."""

    def changed(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        return match[0] if re.match(r"[a-z]+:", target) else before + change(target) + after

    return "".join(part if part.startswith("```") else LINK.sub(changed, part) for part in FENCED.split(markdown))


def _in_repository(page: File, target: str) -> str:
    """The path in the repository that a link of a page of the site leads to."""
    folder = "" if page.generated_by else "docs"  # pages that were taken along lie beside docs/
    return posixpath.normpath(posixpath.join(folder, posixpath.dirname(page.src_uri), target))


def _on_site(name: str, files: Files) -> str:
    """Where the site has a file of the repository."""
    if name == "README.md":
        return "index.md"
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return name if files.get_file_from_path(name) else f"{SHOWN}/{name}.md"

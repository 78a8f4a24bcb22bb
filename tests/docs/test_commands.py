"""Every command has a page that agrees with its --help; links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests import ROOT

DOCS = ROOT / "docs"
_SPEC = importlib.util.spec_from_file_location("docs_commands", DOCS / "commands.py")
assert _SPEC is not None
assert _SPEC.loader is not None
generator = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(generator)
MARKDOWN = [p for p in [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "oxe_curate").rglob("*.md")] if p.is_file()]


@pytest.mark.parametrize("name", generator.pages())
def test_a_page_agrees_with_the_command(name: str) -> None:
    written = (generator.FOLDER / f"{name}.md").read_text()
    assert written == generator.page(name, generator.pages()[name]), "run `make docs`"
    for command in generator.pages()[name]:
        for parameter in generator.commands()[command].params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert f"`{option}`" in written or not option.startswith("-"), option


@pytest.mark.parametrize("name", generator.pages())
def test_a_page_says_more_than_its_options(name: str) -> None:
    before = (generator.FOLDER / f"{name}.md").read_text().partition(generator.BEGIN)[0]
    assert f"oxe-curate {name}" in before.partition("```sh")[2]
    assert f"({name}.md)" in (generator.FOLDER / "README.md").read_text()


def test_no_page_is_left_over() -> None:
    assert {p.stem for p in generator.FOLDER.glob("*.md")} == {*generator.pages(), "README"}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", linked.read_text(), flags=re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, target


def test_the_readme_is_short_and_names_the_five_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) < 120
    assert "docs/images/flow.svg" in readme
    for name in ("filter", "edit", "tokenize", "train", "serve"):
        assert f"oxe-curate {name}" in readme

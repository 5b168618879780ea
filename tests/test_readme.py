"""README.md: length, links, and the names it mentions. Its blocks are run by test_docs.py, as those of every page."""

import re

import pytest

from tests.pages import REPOSITORY, blocks

README = (REPOSITORY / "README.md").read_text()
MOST_LINES = 200
NUM_COMMANDS = 10


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= MOST_LINES


def test_the_walk_has_ten_commands_that_are_run():
    console = [block.text for block in blocks(README) if block.kind == "console"]
    assert sum(text.count("\n$ ") + text.startswith("$ ") for text in console) == NUM_COMMANDS


def test_every_make_target_it_names_exists():
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)
    assert {"demo", "test", "docs"} <= set(named) <= set(targets)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_every_link_into_the_repository_leads_somewhere(name):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", (REPOSITORY / name).read_text())
    assert [target for target in targets if "://" not in target and not (REPOSITORY / target).exists()] == []


def test_the_engine_pages_are_linked():
    assert {
        f"docs/how-to/{page}.md" for page in ("sglang", "vllm", "ascend", "tensorrt-llm", "omni-infer", "deepseek")
    } <= set(re.findall(r"\]\(([^)]+)\)", README))

"""The manual: every marked block of every page is run, and the pages cover every command, strategy, format, dialect."""

import re
from types import SimpleNamespace

import pytest

import eplb
from eplb.formats import FORMATS
from eplb.strategies import STRATEGIES
from eplb_traces import READERS
from tests.pages import DOCS, PAGES, REPOSITORY, Block, blocks, matches, run_page
from tests.tools import architecture, docs_hooks
from tests.traces.examples import small_trace
from tests.walk import run

EXECUTED = [page for page in PAGES if list(blocks(page.read_text()))]


def _name(page):
    return str(page.relative_to(REPOSITORY))


def _page(name: str) -> str:
    return (DOCS / name).read_text()


def _table_names(page: str, heading: str) -> list[str]:
    """The names in back quotes that begin the rows of the table with this first heading."""
    (table,) = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]


@pytest.mark.parametrize("page", EXECUTED, ids=_name)
def test_a_page_runs_and_prints_what_it_shows(page, tmp_path):
    for extra in ("pyarrow", "torch", "ortools", "matplotlib", "prometheus_client"):
        pytest.importorskip(extra)
    assert run_page(page, tmp_path) > 0


def test_most_pages_are_executed():
    assert len(EXECUTED) >= 24
    assert sum(block.kind == "console" for page in EXECUTED for block in blocks(page.read_text())) >= 30


def test_blocks_are_found_by_their_marks():
    console, file = "<!-- executed -->\n```console\n$ eplb\n```\n", "<!-- file: a.csv -->\n```csv\n1\n```\n"
    page = console + "```py\nno\n```\n" + file + "```python\nx\n```\n"
    assert list(blocks(page)) == [
        Block("console", "$ eplb\n", "line 1"),
        Block("file", "1\n", "a.csv"),
        Block("python", "x\n", "line 12"),
    ]


def test_a_wrong_output_and_a_failed_command_are_noticed(tmp_path):
    assert matches("ranks 8\n...\nend\n", "ranks  8\nmuch\nmore\nend\n")
    assert not matches("ranks 8\n", "ranks 9\n")
    with pytest.raises(AssertionError, match="exit code 3"):
        run("eplb trace info missing.csv", tmp_path)
    with pytest.raises(AssertionError, match="exit code 3"):
        run("eplb trace info missing.csv && echo on", tmp_path)


def test_a_command_of_the_shell_is_run_by_the_shell(tmp_path):
    assert run("echo 1 | wc -l", tmp_path).strip() == "1"


def test_the_tables_are_complete():
    from eplb.core.dispatch_rule import DispatchRule
    from eplb.online.decision import Outcome
    from eplb.online.replay import POLICIES
    from eplb_cli.exit_codes import ExitCode

    assert _table_names(_page("reference/file-formats.md"), "format") == list(FORMATS)
    assert _table_names(_page("reference/file-formats.md"), "dialect") == list(READERS)
    assert _table_names(_page("explanation/strategies.md"), "name") == list(STRATEGIES)
    assert _table_names(_page("explanation/dispatch-rules.md"), "rule") == [str(rule) for rule in DispatchRule]
    assert _table_names(_page("explanation/online-rebalancing.md"), "outcome") == [str(one) for one in Outcome]
    assert _table_names(_page("how-to/online.md"), "policy") == list(POLICIES)
    codes = re.findall(r"^\| (\d) \| `(\w+)` \| [^|]+ \|$", _page("reference/exit-codes.md"), re.MULTILINE)
    assert [(int(code), name) for code, name in codes] == [(int(code), code.name) for code in ExitCode]


def test_the_metrics_page_has_every_key():
    trace = small_trace()
    placement = eplb.Placement([list(range(8))] * 2, 8, eplb.Topology(1, 2, 4))
    summary = eplb.evaluate(placement, trace.load(), trace=trace).summary()
    assert "nodes_per_token" in summary
    assert set(summary) <= set(_table_names(_page("reference/metrics.md"), "key"))


def test_the_verify_page_has_every_check():
    pytest.importorskip("torch")
    from eplb.runtime import CAUGHT_BY

    named = set(_table_names(_page("how-to/verify.md"), "check"))
    assert set(CAUGHT_BY.values()) <= named


def test_the_command_line_page_has_every_command_with_its_options():
    text = "\n".join(docs_hooks.command_lines())
    for command in ("plan", "compare", "evaluate", "trace info", "trace record", "formats"):
        assert f"\n## eplb {command}\n" in text
    assert "| `--ranks, -r R` | GPUs of the expert-parallel group. | required |" in text
    assert re.search(r"\| `--redundant, -k K` \| .* \| 0 \|", text)
    assert re.search(r"\| `--json` \| .* \|  \|", text)


def test_the_page_of_dialects_gets_a_row_for_every_reader():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="reference/dialects.md"))
    shown = docs_hooks.on_page_markdown(_page("reference/dialects.md"), page)
    assert _table_names(shown, "dialect") == list(READERS)
    for name, dialect in READERS.items():
        (row,) = [line for line in shown.splitlines() if line.startswith(f"| `{name}` |")]
        for text in (dialect.RECOGNISED_BY, dialect.BECOMES, dialect.REFUSES):
            assert text.replace("|", "\\|") in row


def test_the_page_of_dispatch_rules_gets_a_row_for_every_case_of_an_engine():
    from eplb.dispatch.engine_dispatch import ENGINE_DISPATCH

    page = SimpleNamespace(file=SimpleNamespace(src_uri="explanation/dispatch-rules.md"))
    shown = docs_hooks.on_page_markdown(_page("explanation/dispatch-rules.md"), page)
    assert _table_names(shown, "engine") == [row.engine for row in ENGINE_DISPATCH]
    for row in ENGINE_DISPATCH:
        assert row.source in shown
        assert row.note in shown


def test_every_command_is_used_on_some_page_by_hand():
    text = "\n".join(page.read_text() for page in PAGES)
    names = re.findall(r"^## (eplb .+)$", "\n".join(docs_hooks.command_lines()), re.MULTILINE)
    assert len(names) >= 17
    assert [name for name in names if name not in text] == []


def test_every_public_name_is_on_the_page_of_the_api():
    shown = set(re.findall(r"^::: eplb\.(\w+)$", _page("reference/api.md"), re.MULTILINE))
    assert shown == set(eplb.__all__)


@pytest.mark.parametrize("page", sorted(DOCS.glob("reference/api*.md")), ids=_name)
def test_every_public_name_has_a_docstring(page):
    pytest.importorskip("torch")
    assert docs_hooks.undocumented(page.read_text()) == []


def test_a_missing_docstring_would_be_noticed():
    assert docs_hooks.undocumented("::: tests.test_docs.Undocumented\n") == ["tests.test_docs.Undocumented.method"]


class Undocumented:
    """A class."""

    def method(self):
        pass

    def _private(self):
        pass


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": (\S+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_every_link_of_the_manual_leads_somewhere():
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{_name(page)}: {target}"


def test_the_picture_of_the_architecture_is_that_of_the_imports():
    page = architecture.PAGE.read_text()
    assert page == architecture.page_with_picture(page), "run python tests/tools/architecture.py"
    assert "    planning --> strategies\n" in page


def test_the_picture_leaves_out_arrows_that_others_imply():
    assert architecture.without_shortcuts({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {
        "a": {"b"},
        "b": {"c"},
        "c": set(),
    }

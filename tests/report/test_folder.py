"""The report folder: files, tables that equal the evaluation, a page with every figure, and unusual inputs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import eplb
from eplb.errors import IncompleteOutputError, InputError, MissingExtraError
from eplb.evaluation.pair_locality import share_inside_nodes
from eplb.planning.redundancy_sweep import sweep
from eplb.report import folder as folder_module
from eplb.report import gather
from eplb.report.figures import layer_details, report_figures
from eplb.report.folder import PAGE, FolderOptions, write_folder
from eplb.report.style import ImageFormat
from eplb.report.summary_page import summary_page
from eplb_traces import ExpertLoad, ModelShape, RoutingTrace, TokenBatch
from eplb_traces.coactivation.layer_coactivation import coactivation
from tests.report.examples import TOPOLOGY, contents_of_trace, placement, skewed, some_trace

pytest.importorskip("matplotlib")
pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "out"
    write_folder(contents_of_trace(), path)
    return path


def names(path):
    return {file.name for file in path.iterdir()}


def test_files_written_for_a_trace(folder):
    worst = int(contents_of_trace().plans[0].evaluation.max_over_mean.argmax())
    assert names(folder) == {
        PAGE,
        *("layer-balance.png", f"rank-load-layer-{worst}.png", "expert-load.png", "balance-over-windows.png"),
        *("replica-counts-1.png", "migration-1.png", "balance-and-token-spread.png", "redundancy.png"),
        *("traffic-0.png", "traffic-1.png", "hottest-experts.png", "coactivation-overview.png"),
        *(f"coactivation-{what}-layer-{worst}.png" for what in ("tokens", "lift", "lift-ordered")),
        *("metrics.csv", "layers.csv", "ranks.csv", "experts.csv", "windows.csv", "migration.csv", "redundancy.csv"),
        *("pairs.csv", "pair_locality.csv", "hottest_experts.csv"),
    }


def test_the_page_begins_with_the_summary_and_shows_every_file(folder):
    page = (folder / PAGE).read_text()
    assert page.startswith("# Expert placement for trace.parquet\n\n- trace.parquet: 3 layers of 16 experts on 4 ranks")
    shown = set(re.findall(r"\]\(([^)]+)\)", page))
    assert shown == names(folder) - {PAGE}
    assert all("![" in line for line in page.splitlines() if line.endswith(".png)"))
    assert contents_of_trace().load.digest in page


def test_metrics_table_equals_the_evaluation(folder):
    table = pd.read_csv(folder / "metrics.csv").set_index("plan")
    for view in contents_of_trace().plans:
        for name, value in view.evaluation.summary().items():
            assert table.loc[view.name, name] == pytest.approx(value, rel=1e-14)
        assert table.loc[view.name, "ranks_per_token"] == pytest.approx(view.spread.ranks_per_token.mean(), rel=1e-14)
    assert table["moved_copies"].tolist()[1] == contents_of_trace().plans[1].migration.moved_copies
    row = next(line for line in (folder / PAGE).read_text().splitlines() if line.startswith("| `moved_copies` |"))
    assert row.split(" | ")[1] == "-"  # there is no migration to the first plan


def test_layer_and_rank_tables_equal_the_evaluation(folder):
    views = contents_of_trace().plans
    layers, ranks = (pd.read_csv(folder / name) for name in ("layers.csv", "ranks.csv"))
    for view in views:
        of_plan = layers[layers["plan"] == view.name]
        assert of_plan["model_layer"].tolist() == [1, 2, 5]
        np.testing.assert_allclose(of_plan["max_over_mean"], view.evaluation.max_over_mean)
        np.testing.assert_allclose(of_plan["gap"], view.evaluation.gap, atol=1e-12)
        np.testing.assert_allclose(of_plan["busiest_rank_tokens"], view.evaluation.total_rank_load.max(axis=1))
        np.testing.assert_allclose(of_plan["ranks_per_token"], view.spread.ranks_per_token)
        by_rank = ranks[ranks["plan"] == view.name].pivot(index="layer", columns="rank", values="tokens")
        np.testing.assert_allclose(by_rank, view.evaluation.total_rank_load)
    # First plan: 4 experts and an empty slot per rank; greedy: 5. Replicas moved in sum to those of the migration.
    assert ranks.groupby("plan")["experts"].unique().map(list).to_dict() == {"experts in order": [4], "greedy": [5]}
    assert ranks["moved_in"].sum() == views[1].migration.moved_copies


def test_expert_window_and_migration_tables(folder):
    contents = contents_of_trace()
    experts, windows, migration = (pd.read_csv(folder / f"{name}.csv") for name in ("experts", "windows", "migration"))
    np.testing.assert_array_equal(experts["tokens"], contents.load.total.reshape(-1))
    replicas = contents.plans[1].placement.logical_replica_count.reshape(-1)
    np.testing.assert_array_equal(experts["replicas in greedy"], replicas)
    after = windows[windows["plan"] == "greedy"]
    np.testing.assert_allclose(after["max_over_mean_worst"], contents.plans[1].balance_by_window.max(axis=1))
    assert after["label"].tolist() == ["step 0", "step 1", "step 2", "step 3"]
    assert migration["replicas"].sum() == contents.plans[1].migration.moved_copies
    assert (migration["from_rank"] != migration["to_rank"]).all()


def test_pairs_and_redundancy_tables(folder):
    contents = contents_of_trace()
    pairs, redundancy = (pd.read_csv(folder / f"{name}.csv") for name in ("pairs", "redundancy"))
    worst = int(pairs["layer"][0])
    expected = coactivation(some_trace(), worst).top_pairs(100)
    assert list(zip(pairs["expert"], pairs["other_expert"], pairs["tokens"], strict=True)) == [p[:3] for p in expected]
    points = sweep(contents.windows, 4, 2, (0, 4, 8, 16, 32))
    assert redundancy["num_redundant"].tolist() == [0, 4, 8, 16, 32]
    np.testing.assert_allclose(redundancy["max_over_mean_mean"], [point.max_over_mean_mean for point in points])
    assert "seconds" not in redundancy


def test_pair_locality_table_has_groups_and_each_plan(folder):
    table = pd.read_csv(folder / "pair_locality.csv", keep_default_na=False).set_index(["plan", "place"])
    found, (before, after) = coactivation(some_trace(), int(table["layer"].iloc[0])), contents_of_trace().plans
    # Groups and ranks of experts in order are both four neighbours.
    groups = found.share_inside(np.arange(16) // 4)
    for key in (("", "expert group"), (before.name, "rank")):
        np.testing.assert_allclose(table.loc[key, ["observed", "expected"]].astype(float), groups)
    nodes = share_inside_nodes(after.placement, found)
    np.testing.assert_allclose(table.loc[(after.name, "node"), ["observed", "expected"]].astype(float), nodes)


def test_the_same_report_has_the_same_bytes(folder, tmp_path):
    write_folder(contents_of_trace(), tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_layers_and_image_format_are_options(tmp_path):
    files = write_folder(
        gather(some_trace(), topology=TOPOLOGY, expert_bytes=1e9), tmp_path, FolderOptions((2,), ImageFormat.PDF)
    )
    assert files[0] == tmp_path / PAGE
    pictures = [path.name for path in files if path.suffix == ".pdf"]
    assert "rank-load-layer-2.pdf" in pictures
    # Of all layers, of the traffic of two plans, of a layer's ranks, of its pairs.
    assert len(pictures) == 9 + 2 + 1 + 3
    page = (tmp_path / PAGE).read_text()
    assert "[layer-balance.pdf](layer-balance.pdf)" in page
    assert "if an expert of a layer has 1000 MB" in page
    with pytest.raises(InputError, match="layer = 3: expected 0 <= layer < 3"):
        write_folder(contents_of_trace(), tmp_path, FolderOptions((3,)))
    with pytest.raises(InputError, match=r"s3://bucket/out: a report folder is written on this machine"):
        write_folder(contents_of_trace(), Path("s3://bucket/out"))


def test_layers_are_shown_once_in_the_given_order():
    pictures = report_figures(contents_of_trace(), layer_details(contents_of_trace(), (2, 0, 2)))
    found = [picture.name for picture in pictures if "-layer-" in picture.name]
    kinds = ("coactivation-tokens", "coactivation-lift", "coactivation-lift-ordered")
    assert found == [
        "rank-load-layer-2",
        "rank-load-layer-0",
        *(f"{kind}-layer-{layer}" for layer in (2, 0) for kind in kinds),
    ]


def drawn(contents, layers=()):
    """Names of the pictures, each laid out but not written."""
    found = []
    for picture in report_figures(contents, layer_details(contents, layers)):
        picture.draw().figure.draw_without_rendering()
        found.append(picture.name)
    return found


def test_a_load_without_trace_has_no_figures_of_tokens():
    found = drawn(gather(skewed(), topology=eplb.Topology.for_experts(8, num_ranks=4)))
    # 8 experts on 4 ranks without redundant ones: every expert has one replica.
    expected = ["layer-balance", "rank-load-layer-0", "expert-load", "hottest-experts", "migration-1", "redundancy"]
    assert found == expected


def test_names_of_plans_are_escaped_in_the_page():
    hostile = "a|b](x) <script>*_#`\nplan"
    page = summary_page(gather(some_trace(), {hostile: placement()}), {}, {}, (0,))
    escaped = r"a\|b\](x) \<script\>\*\_\#\` plan"
    assert f"| metric | experts in order | {escaped} |" in page
    assert "<script>" not in page


def top_1(num_experts):
    shape = ModelShape(1, num_experts, 1)
    ids = np.arange(8).reshape(8, 1, 1) % num_experts
    return RoutingTrace(shape, [TokenBatch(shape, ids, np.zeros(8, int), np.arange(8))])


@pytest.mark.parametrize(
    ("source", "topology"),
    [
        (top_1(1), eplb.Topology(1, 1, 1)),  # one expert on one rank: no pairs, no redundancy
        (top_1(4), eplb.Topology(2, 1, 2)),
        (ExpertLoad([[0, 0, 0, 0], [1, 2, 3, 4]]), eplb.Topology(1, 2, 2)),  # an empty layer
        (skewed(1, 512), eplb.Topology.for_experts(512, num_ranks=64, num_nodes=8, num_redundant=64)),
        (skewed(2, 10), eplb.Topology.for_experts(10, num_ranks=4, num_redundant=2)),  # 10 experts, 4 ranks
    ],
)
def test_unusual_inputs_are_drawn(source, topology):
    assert drawn(gather(source, topology=topology), (0,))[:3] == ["layer-balance", "rank-load-layer-0", "expert-load"]


def test_choices_without_pairs_have_no_figures_of_pairs(tmp_path):
    write_folder(gather(top_1(4), topology=eplb.Topology(2, 1, 2)), tmp_path)
    assert not any(re.match("coactivation|pairs|pair_locality", name) for name in names(tmp_path))
    assert "balance-and-token-spread.png" in names(tmp_path)


def test_a_layer_and_windows_without_tokens_are_drawn_and_written(tmp_path):
    tokens = np.zeros((4, 2, 4))
    tokens[[0, 2], 0] = [3, 3, 1, 1]
    plan = eplb.Placement([[0, 2, 1, 3]] * 2, 4, eplb.Topology(1, 2, 2))
    write_folder(gather(ExpertLoad(tokens), {"p": plan}), tmp_path)
    assert {"balance-over-windows.png", "layer-balance.png"} < names(tmp_path)
    page = (tmp_path / PAGE).read_text()
    assert "2 windows and 1 layer without tokens left out." in page
    assert "| `num_empty_windows` | 2 | 2 |" in page
    assert "nan" not in page


def test_a_plan_that_changes_nothing_moves_nothing():
    contents = gather(some_trace(), {"a": placement(), "b": placement()})
    found = [picture.name for picture in report_figures(contents, layer_details(contents, ()))]
    assert "migration-1" not in found
    assert {"replica-counts-0", "replica-counts-1"} < set(found)


def test_a_folder_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "nowhere" / "out"):
        with pytest.raises(InputError, match="cannot create the folder"):
            write_folder(contents_of_trace(), path)


@pytest.mark.parametrize("missing", ["matplotlib", "pandas"])
def test_a_missing_extra_is_named_before_anything_is_written(monkeypatch, tmp_path, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match="extra 'report'"):
        write_folder(contents_of_trace(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, eplb.report; print(sorted({'matplotlib', 'pandas'} & set(sys.modules)))"
    script = f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}; {code}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_an_interrupted_report_is_recognised_by_its_missing_page(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "out")
    real, left = folder_module.atomic_write, [3]

    def full_disk(path, content):
        left[0] -= 1
        if left[0] < 0:
            raise InputError(f"cannot write {path}: No space left on device")
        real(path, content)

    monkeypatch.setattr(folder_module, "atomic_write", full_disk)
    with pytest.raises(
        IncompleteOutputError, match=r"is incomplete, it has no summary.md: cannot write .*\.csv: No space"
    ):
        write_folder(contents_of_trace(), tmp_path / "out")
    assert PAGE not in names(tmp_path / "out")
    monkeypatch.undo()
    write_folder(contents_of_trace(), tmp_path / "out")
    assert PAGE in names(tmp_path / "out")


def test_texts_that_are_formulas_are_quoted():
    table = pd.DataFrame({"plan": ["=1+1", "+a", "-b", "@c", "\td", "plain"], "ratio": [-1.0, 2, 3, 4, 5, 6]})
    read = folder_module.csv_bytes(table).decode().splitlines()
    assert read == ["plan,ratio", "'=1+1,-1.0", "'+a,2.0", "'-b,3.0", "'@c,4.0", "'\td,5.0", "plain,6.0"]

"""What the columns of a table mean, the same for text and for Parquet."""

import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eplb_traces import InputError, read_load, read_trace
from eplb_traces.readers import ReadOptions, read

CASES = Path(__file__).resolve().parents[1] / "cases"
TRUTH = np.loadtxt(CASES / "TRUTH-4x16.txt")
WRITERS = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "parquet": lambda frame, path: frame.to_parquet(path, index=False),
}
every_file = pytest.mark.parametrize("kind", WRITERS)


def written(tmp_path, kind, text):
    """The table of a CSV text, as a file of another kind."""
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"load.{kind}"
    frame = pd.read_csv(io.StringIO(text)).rename(columns=lambda name: "" if name.startswith("Unnamed") else name)
    WRITERS[kind](frame, path)
    return path


SMALL = [[1, 2, 3, 4], [5, 6, 7, 8]]


@every_file
@pytest.mark.parametrize(
    ("text", "ids", "note"),
    [
        ("layer,e1,e0,e3,e2\n9,6,5,8,7\n3,2,1,4,3\n", (3, 9), "the ids between are not in the file"),
        (",0,1,2,3\n0,1,2,3,4\n1,5,6,7,8\n", None, "ids unknown"),
        (",0,1,2,3\n3,1,2,3,4\n4,5,6,7,8\n", (3, 4), "ids 3-4"),
        ("moe_layer,0,1,2,3\n0,1,2,3,4\n1,5,6,7,8\n", None, "ids unknown"),
        ("layer,module,e0,e1,e2,e3\n3,a,1,2,3,4\n4,b,5,6,7,8\n", (3, 4), "column module left out"),
        ("name,e0,e1,e2,e3\nlayer_10,5,6,7,8\nlayer_9,1,2,3,4\n", (9, 10), "ids 9-10"),
        (
            "module,exp 0,exp 1,exp 2,exp 3\nmodel.layers.3.mlp.gate,1,2,3,4\nmodel.layers.4.mlp.gate,5,6,7,8\n",
            (3, 4),
            "ids 3-4",
        ),
        ("rank,layer_idx,0,1,2,3\n0,3,1,0,3,0\n0,4,0,6,0,8\n1,3,0,2,0,4\n1,4,5,0,7,0\n", (3, 4), "summed over rank"),
        ("expert,layer_4,layer_3\n0,5,1\n2,7,3\n1,6,2\n3,8,4\n", (3, 4), "transposed"),
        ("Expert ID,3,4\n0,1,5\n1,2,6\n2,3,7\n3,4,8\n", (3, 4), "transposed"),
        (
            "freq,hotness,expert_idx,layer_idx\n.1,1,0,3\n.2,2,1,3\n.3,3,2,3\n.4,4,3,3\n0,5,0,4\n0,6,1,4\n0,7,2,4\n0,8,3,4\n",
            None,
            "could both be the tokens",
        ),
        (
            "freq,count,expert_idx,layer_idx\n.1,1,0,3\n.2,2,1,3\n.3,3,2,3\n.4,4,3,3\n0,5,0,4\n0,6,1,4\n0,7,2,4\n0,8,3,4\n",
            (3, 4),
            "column freq left out",
        ),
        (
            "layer,expert,load,rank\n3,0,1,0\n3,1,1,0\n3,1,1,5\n3,2,3,0\n3,3,4,0\n4,0,5,1\n4,1,6,0\n4,2,7,0\n4,3,8,0\n",
            (3, 4),
            "summed over rank",
        ),
    ],
)
def test_one_load_in_many_tables(tmp_path, kind, text, ids, note):
    path = written(tmp_path, kind, text)
    if "could both" in note:
        with pytest.raises(InputError, match=f"columns freq and hotness {note}"):
            read(path)
        return
    reading = read(path)
    np.testing.assert_array_equal(reading.content.total, SMALL)
    assert reading.content.shape.moe_layer_ids == ids
    assert note in reading.summary


@every_file
@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("window,layer,0,1\n0,3,1,2\n1,3,5,6\n", ()),
        ("layer,step,0,1\n3,200,5,6\n3,90,1,2\n", ("step 90", "step 200")),
        ("layer,step,expert,count\n3,200,0,5\n3,200,1,6\n3,90,0,1\n3,90,1,2\n", ("step 90", "step 200")),
    ],
)
def test_windows(tmp_path, kind, text, labels):
    load = read_load(written(tmp_path, kind, text))
    np.testing.assert_array_equal(load.tokens, [[[1, 2]], [[5, 6]]])
    assert load.labels == labels


def test_repeated_layers_are_windows_only_if_the_caller_says_so(tmp_path):
    path = written(tmp_path, "csv", "layer,0,1\n3,1,2\n4,3,4\n3,5,6\n4,7,8\n")
    with pytest.raises(InputError, match=r"line 4, column 1 \(layer\): layer 3 is there twice; .* \(--window 1\)"):
        read_load(path)
    np.testing.assert_array_equal(read_load(path, window=1).tokens, [[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    path = written(tmp_path, "csv", "layer,0,1\n3,1,2\n4,3,4\n3,5,6\n")
    with pytest.raises(InputError, match="window 1, layer 4 has no row"):
        read_load(path, window=1)


@every_file
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer,e0,e1,total\n0,1,2,3\n", "column 4 is 'total', which is no expert: remove it"),
        ("layer,e0,e1,e3\n0,1,2,3\n", "the columns of experts are 0-1, 3: expected 0, 1, .. without a gap"),
        ("layer,e1,e2\n0,1,2\n", r"experts are counted from 1, give num_experts \(--num-experts 2\)"),
        ("layer,rank0,rank1\n0,1,2\n", "header layer, rank0, rank1: expected layer, expert, tokens"),
        ("layer,slot_0,slot_1\n0,1,2\n", "header layer, slot_0, slot_1: expected"),
        ("layer,physical_expert,count\n0,1,2\n", "header layer, physical_expert, count: expected"),
        ("domain,0,1\n0,1,2\n", "header domain, 0, 1: no column has the layer"),
        ("step,0,1\n0,1,2\n", "header step, 0, 1: no column has the layer"),
        ("layer,expert,weight\n0,1,2\n", "header layer, expert, weight: expected"),
        ("layer,expert,count,tokens\n0,1,2,3\n", "columns count and tokens could both be the tokens"),
        ("window,step,layer,expert,count\n0,1,2,3,4\n", "columns window and step could both be the window"),
        (
            "layer,expert,count,domain\n0,1,2,3\n0,1,2,4\n",
            "layer 0, expert 1 is there twice; column domain was left out",
        ),
        ("layer,0,e0\n0,1,2\n", "columns 0 and e0 are one"),
        ("name,0,1\nfirst,1,2\n", "'first': expected a layer: 3, layer_3 or model.layers.3"),
        ("expert,3,4\n0,1,5\n2,3,7\n", "rows are experts, and expert 1 is not there once"),
        ("layer,0,1\n3,1,2\n4,0,0\n5,3,4\n6,1,1\n", "layers 4 have no token .* a broken recording"),
        ("window,layer,0,1\n0,3,1,2\n0,4,1,2\n1,3,1,2\n", "window 1, layer 4 has no row"),
        ("layer,0,1\n0,1,2\n900000000000000,1,2\n", "= 900000000000000: expected a layer below 65536"),
        ("token,layer,weight\n0,3,1\n", "a row is a token, but no column has its experts"),
    ],
)
def test_other_tables_are_refused(tmp_path, kind, text, message):
    with pytest.raises(InputError, match=message):
        read_load(written(tmp_path, kind, text))


def test_numbers_alone_that_are_likely_no_counts_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((40, 64)), axis=1)[:, :8]
    with_layers = np.hstack([np.arange(4)[:, None], TRUTH])
    pairs = np.stack([*np.indices((4, 8)).reshape(2, -1), np.arange(5, 37)], axis=1)
    for matrix, message in (
        (ids, "are different in every row, as expert ids of tokens are"),
        (with_layers, "as if the first column were the layer"),
        (pairs, "look like layer, expert, tokens without a header"),
        (rng.integers(0, 9, (64, 27)), "look like 64 experts in 27 layers"),
        (np.ones((4, 1)), "have no second expert"),
    ):
        np.savetxt(tmp_path / "a.csv", matrix, fmt="%d", delimiter=",")
        with pytest.raises(InputError, match=message):
            read_load(tmp_path / "a.csv")
        np.testing.assert_array_equal(read_load(tmp_path / "a.csv", num_experts=matrix.shape[1]).total, matrix)


IDS = np.array([[[0, 5], [1, 2]], [[3, 4], [7, 0]], [[6, 1], [2, 5]]])  # [tokens, layers, top-k]


@every_file
@pytest.mark.parametrize("form", ["columns", "spaces", "brackets"])
def test_the_token_form_is_a_trace(tmp_path, kind, form):
    rows = [(token, layer, IDS[token, layer]) for layer in (1, 0) for token in (2, 0, 1)]
    if form == "columns":
        text = "token_idx,layer,expert_1,expert_0,weight_0\n" + "".join(
            f"{t},{m + 3},{b},{a},1\n" for t, m, (a, b) in rows
        )
    else:
        mark = {"spaces": "{} {}", "brackets": '"[{}, {}]"'}[form]
        text = "token_idx,layer,topk_ids\n" + "".join(f"{t},{m + 3},{mark.format(*of)}\n" for t, m, of in rows)
    trace = read_trace(written(tmp_path, kind, text), num_experts=8)
    assert trace.shape.moe_layer_ids == (3, 4)
    (batch,) = trace.batches()
    np.testing.assert_array_equal(batch.expert_ids, IDS[[2, 0, 1]])  # in the order of the file
    with pytest.raises(InputError, match=r"give num_experts \(--num-experts\)"):
        read_load(written(tmp_path, kind, text))


def test_tokens_of_parquet_may_be_lists(tmp_path):
    pytest.importorskip("pyarrow")
    rows = [
        {"req_id": f"r{t}", "token": 0, "layer": m, "experts": IDS[t, m].tolist()} for t in range(3) for m in (0, 1)
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    (batch,) = read_trace(tmp_path / "a.parquet", num_experts=8).batches()
    np.testing.assert_array_equal(batch.expert_ids, IDS)
    np.testing.assert_array_equal(batch.request, [0, 1, 2])
    rows[3]["experts"] = [1, 2, 3]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="row 3, column experts has 3 ids: expected 2"):
        read_trace(tmp_path / "a.parquet", num_experts=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("token,layer,e0,e1\n0,0,1,2\n0,0,3,4\n", r"line 3, column 1 \(token\): this token has layer 0 twice"),
        ("token,layer,e0,e1\n0,0,1,2\n0,1,3,4\n1,0,1,2\n", r"line 4, column 1 \(token\): it has no row for layer 1"),
        ("token,layer,e0,e1\n0,0,1,9\n", "row 0, choice 1 = 9: expected 0 <= id < num_experts = 8"),
        ("token,layer,e0,e1\n0,0,1,1\n", "expert 1 is there twice"),
        ("token,layer,e0,e2\n0,0,1,2\n", "choices of a token are numbered 0, 2"),
        ("token,layer,experts\n0,0,1 2\n1,0,1\n", r"line 3, column 3 \(experts\) = '1': expected 2 ids"),
        ("token,layer,experts\n0,0,1 x\n", "= '1 x': expected ids >= 0 between spaces"),
        ("token,layer,e0\n", "the table has a header and no rows"),
    ],
)
def test_errors_of_the_token_form(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_trace(tmp_path / "a.csv", num_experts=8)


def test_ignored_ids_and_columns(tmp_path):
    (tmp_path / "a.csv").write_text("layer,expert,count\n3,0,1\n3,1,2\n3,255,9\n")
    load = read_load(tmp_path / "a.csv", ignore_ids=(255,))
    np.testing.assert_array_equal(load.total, [[1, 2]])
    (tmp_path / "a.csv").write_text("layer,0,1,2\n3,1,2,9\n")
    np.testing.assert_array_equal(read_load(tmp_path / "a.csv", ignore_columns=(2,)).total, [[1, 2]])
    with pytest.raises(InputError, match="the file has 3 experts"):
        read_load(tmp_path / "a.csv", ignore_columns=(3,))
    with pytest.raises(InputError, match=r"ignore_ids \(--ignore-ids\) has no effect"):
        read_load(tmp_path / "a.csv", ignore_ids=(255,))
    (tmp_path / "a.csv").write_text("token,layer,e0,e1,e2\n0,0,1,2,255\n1,0,255,4,5\n")
    trace = read_trace(tmp_path / "a.csv", num_experts=8, ignore_ids=(255,))
    np.testing.assert_array_equal(next(trace.batches()).expert_ids[:, 0], [[1, 2], [4, 5]])


def test_dense_layers_at_the_front_are_told(tmp_path):
    (tmp_path / "a.csv").write_text("layer,0,1\n0,0,0\n1,1,2\n2,3,4\n")
    reading = read(tmp_path / "a.csv")
    assert reading.content.shape.moe_layer_ids == (1, 2)
    assert "layers 0 have no token and count as dense" in reading.summary
    with pytest.raises(InputError, match="layer 2, not among them, has tokens"):
        read(tmp_path / "a.csv", ReadOptions(moe_layer_ids=(0, 1)))


def test_compressed_text_that_is_damaged_is_refused(tmp_path):
    content = gzip.compress(b"layer,0,1\n" + b"".join(b"%d,1,2\n" % i for i in range(2000)))
    for damaged in (content[:-20], content[:40] + b"xx" + content[42:]):
        (tmp_path / "a.csv.gz").write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.csv\.gz: "):
            read_load(tmp_path / "a.csv.gz")


COMPLETE = pd.DataFrame(
    [(w, i, e, 0 if e == 3 else 100 + 7 * e + w) for w in range(2) for i in range(3) for e in range(8)],
    columns=["window", "layer", "expert", "tokens"],
)


@pytest.mark.parametrize("order", [["window", "layer", "expert"], ["layer", "expert", "window"], ["expert", "layer"]])
@pytest.mark.parametrize("num_kept", [47, 46, 43])
def test_a_long_form_with_zeros_that_ends_too_early_is_cut_off(tmp_path, order, num_kept):
    COMPLETE.sort_values(order, kind="stable").head(num_kept).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(InputError, match=f"the last {48 - num_kept} of 48 pairs have no row, .* the file is cut off"):
        read(tmp_path / "a.csv")


def test_holes_in_a_long_form_with_zeros_are_told(tmp_path):
    COMPLETE.drop([9, 25]).to_csv(tmp_path / "a.csv", index=False)
    assert "2 of 48 pairs have no row and count as 0, though others have a row of 0" in read(tmp_path / "a.csv").notes
    COMPLETE[COMPLETE.tokens > 0].to_csv(tmp_path / "a.csv", index=False)
    assert not read(tmp_path / "a.csv").notes
    COMPLETE.to_csv(tmp_path / "a.csv", index=False)
    assert not read(tmp_path / "a.csv").notes


def grouped(number):
    return f"{number:,}".replace(",", ".")


@pytest.mark.parametrize("separator", [",", "\t", " "])
def test_points_that_group_thousands_are_no_fractions(tmp_path, separator):
    tokens = [900, 1230, 12_345, 7, 990, 1_234, 50, 2_001]
    rows = [["layer", *(f"e{i}" for i in range(8))], *([i, *map(grouped, tokens[i:] + tokens[:i])] for i in range(3))]
    (tmp_path / "a.csv").write_text("\n".join(separator.join(map(str, row)) for row in rows))
    with pytest.raises(InputError, match=r"line 2, column . \(e.\) or below: .*without thousands separator"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("write", ["{:.3f}".format, "{!r}".format, "{:g}".format])
def test_fractions_with_three_decimals_are_fractions(tmp_path, write):
    tokens = np.random.default_rng(0).uniform(0, 900, (4, 16)).round(3)
    tokens[:, ::3] = tokens[:, ::3].round()
    rows = [[i, *map(write, row)] for i, row in enumerate(tokens.tolist())]
    pd.DataFrame(rows, columns=["layer", *range(16)]).to_csv(tmp_path / "a.csv", index=False)
    np.testing.assert_allclose(read_load(tmp_path / "a.csv").tokens[0], tokens, rtol=1e-4)


@pytest.mark.parametrize("column", ["request", "rank"])
def test_not_a_number_names_nothing(tmp_path, column):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    frame = pd.DataFrame({"layer": 0, "expert": [0, 1, 0, 1], "tokens": [3, 4, 5, 6], "rank": [0.0, 0.0, 1.0, 1.0]})
    if column == "request":
        frame = pd.DataFrame({"token": [0, 1], "layer": 0, "experts": [[0, 1], [2, 1]], "request": [0.0, 1.0]})
    frame.loc[len(frame) - 1, column] = np.nan
    columns = {name: frame[name].to_numpy() if name == column else frame[name].tolist() for name in frame}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")  # of numpy's arrays it keeps a NaN
    with pytest.raises(InputError, match=rf"row {len(frame) - 1}, column {column} = nan: expected a finite number"):
        read(tmp_path / "a.parquet", ReadOptions(num_experts=4))

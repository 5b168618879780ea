"""`eplb trace record`, end to end with a model and a tokenizer that the test makes."""

import json

import numpy as np
import pytest

from eplb_cli.exit_codes import ExitCode
from eplb_traces import read_trace
from eplb_traces.recorder.prompts import read_prompts
from tests.traces.examples import joined

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A tiny Mixtral with a tokenizer of one token a word: word n has the id n."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tests.traces.recorder.models import build

    folder = tmp_path_factory.mktemp("model")
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, 64)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    build("mixtral").save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("w5 w6 w7\nw8 w9 w10 w11\n\nw12\n")
    return path


def recorded(run, model_dir, prompts, out, *words):
    result = run("trace", "record", model_dir, prompts, "-o", out, "--device", "cpu", *words)
    assert result.exit_code == 0, result.stderr
    return result, read_trace(out)


def test_prompts_become_requests_and_answers_go_on_with_them(run, model_dir, prompts, tmp_path):
    words = ("--max-new-tokens", 4, "--batch-size", 2)
    result, trace = recorded(run, model_dir, prompts, tmp_path / "a.parquet", *words)
    columns = joined(trace)
    assert np.bincount(columns["request"][columns["step"] == 0]).tolist() == [3, 4]
    assert set(columns["request"][columns["step"] >= 4]) <= {2}  # a batch takes at most four passes
    assert trace.shape.num_layers == 3
    assert trace.shape.name == model_dir.name
    num_steps = len(set(columns["step"]))
    assert result.stdout == (
        f"wrote {tmp_path / 'a.parquet'}\n  {trace.num_tokens} tokens of 3 requests in {num_steps} steps\n"
    )


def test_a_prompt_is_routed_alike_in_any_batch(run, model_dir, prompts, tmp_path):
    traces = [
        recorded(run, model_dir, prompts, tmp_path / f"{size}.parquet", "--batch-size", size, "--max-new-tokens", 3)[1]
        for size in (1, 3)
    ]
    alone, together = (joined(trace) for trace in traces)
    for request in range(3):
        np.testing.assert_array_equal(
            *(np.sort(of["expert_ids"][of["request"] == request], axis=2) for of in (alone, together))
        )


def test_jsonl_prompts_that_are_only_read(run, model_dir, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(x) for x in ({"prompt": "w5 w6", "id": 3}, {"text": "w7"}, "w8 w9 w10")))
    _, trace = recorded(run, model_dir, path, tmp_path / "a.parquet", "--max-new-tokens", 0)
    assert joined(trace)["request"].tolist() == [0, 0, 1, 2, 2, 2]


def test_a_prompt_may_hold_any_line_separator_but_the_line_feed(tmp_path):
    path = tmp_path / "prompts.jsonl"
    prompts = ["w5\u2028w6", "w7\u0085"]
    path.write_text("\n".join(json.dumps(prompt, ensure_ascii=False) for prompt in prompts), encoding="utf-8")
    assert read_prompts(path) == prompts


def test_the_output_is_looked_at_before_the_model(run, prompts, tmp_path):
    result = run("trace", "record", tmp_path / "no-model", prompts, "-o", tmp_path / "a.json")
    assert result.exit_code == ExitCode.BAD_INPUT
    assert "a trace is written as .parquet" in result.stderr


@pytest.mark.parametrize(
    ("name", "content", "words", "message"),
    [
        ("p.txt", "\n \n", (), "p.txt: has no prompt"),
        ("p.txt", "w5", ("--batch-size", 0), "batch_size = 0: expected at least 1"),
        ("p.txt", "w5", ("--max-new-tokens", -1), "max_new_tokens = -1: expected at least 0"),
        ("p.txt", "w5", ("--device", "abacus"), "device 'abacus'"),
        ("p.txt", "w5", ("-o", "trace.npz"), "a trace is written as .parquet"),
        ("p.txt", "w5", ("-o", "none/trace.parquet"), "cannot write"),
        ("p.jsonl", '"w5"\n{"prompt": 3}', (), "line 2: expected a string, or an object with a string under 'prompt'"),
        ("p.jsonl", '{"question": "w5"}', (), "line 1: expected a string"),
        ("p.jsonl", "w5", (), "line 1: not JSON"),
        ("p.bin", b"\xff\xfe", (), "p.bin: not a text"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(run, model_dir, tmp_path, monkeypatch, name, content, words, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run("trace", "record", model_dir, path, "-o", "a.parquet", "--max-new-tokens", 1, *words)
    assert result.exit_code == ExitCode.BAD_INPUT
    assert message in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_folders_that_hold_no_model_are_refused(run, prompts, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    result = run("trace", "record", empty, prompts, "-o", tmp_path / "a.parquet")
    assert result.exit_code == ExitCode.BAD_INPUT
    assert "no config.json: expected the folder of a Hugging Face model" in result.stderr
    (empty / "config.json").write_text('{"model_type": "no_such_model"}')
    result = run("trace", "record", empty, prompts, "-o", tmp_path / "a.parquet")
    assert result.exit_code == ExitCode.BAD_INPUT
    assert "transformers cannot load it" in result.stderr


def test_a_missing_prompt_file_and_a_missing_extra(run, model_dir, prompts, tmp_path, monkeypatch):
    result = run("trace", "record", model_dir, tmp_path / "none.txt", "-o", tmp_path / "a.parquet")
    assert (result.exit_code, "No such file" in result.stderr) == (ExitCode.BAD_INPUT, True)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    result = run("trace", "record", model_dir, prompts, "-o", tmp_path / "a.parquet")
    assert result.exit_code == ExitCode.USAGE
    assert "recording a model needs the extra 'record': " in result.stderr

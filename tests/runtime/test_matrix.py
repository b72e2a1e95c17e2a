"""The matrix: rows of lanes in every form, and `verify` in several runtimes at once."""

import json
from pathlib import Path

from isoformer.runtime import matrix
from isoformer.runtime.lanes import Found, Lane
from isoformer.runtime.parity import Comparison


def found() -> Found:
    made = Found()
    lane = Lane("node 1.2 cpu", "node", "1.2", "cpu", "float32", asked="node")
    made.add(lane, [Comparison(lane.label, "golden", "test_data_set_0", "logits", 7, 0.25, 1.0)])
    lane = Lane(
        "openvino 3 <b>", "openvino", "3 <b>", "openvino", "int8", "model", "cpu-int8", "Attention 6", "openvino"
    )
    made.add(lane, [Comparison(lane.label, "golden", "test_data_set_0", "logits", 7, float("inf"), 1.0, "NaN")])
    made.missing["c"] = "install gcc | clang"
    return made


def test_rows() -> None:
    passed, failed, missing = found().rows()
    assert (passed["passed"], passed["worst_share_of_bound"], passed["cases"], passed["values"]) == (True, 0.25, 1, 7)
    assert (failed["passed"], failed["worst_share_of_bound"], failed["failures"]) == (False, None, 1)
    assert failed["elsewhere"] == "Attention 6"
    assert missing == {"label": "c", "engine": "c", "missing": "install gcc | clang"}
    json.dumps(found().rows(), allow_nan=False)


def test_markdown() -> None:
    lines = matrix.markdown(found().rows()).splitlines()
    assert len(lines) == 5
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "| node | 1.2 | cpu | model | float32 | 1 | 7 | 0.25 | passed |" in lines
    assert "1 failed; on another provider: Attention 6" in lines[3]


def test_a_page_says_what_failed_and_what_is_missing(tmp_path: Path) -> None:
    matrix.write_html(tmp_path / "matrix.html", [("tiny & small", found().rows())])
    page = (tmp_path / "matrix.html").read_text(encoding="utf-8")
    assert "tiny &amp; small" in page
    assert "3 &lt;b&gt;" in page
    assert page.count("<tr class=") == 3
    assert "no number" in page
    assert "not run: install gcc" in page
    assert [file.name for file in tmp_path.iterdir()] == ["matrix.html"]


def test_what_is_missing_is_said_and_does_not_fail_the_rest(
    isoformer, tiny_package: Path, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no Node, no compiler
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr("sys.path", [])
    for name in ("node", "c"):
        done = isoformer("verify", tiny_package, "--runtime", name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert "install" in done.stderr


def test_variants_that_are_not_there(isoformer, tiny_package: Path) -> None:
    done = isoformer("verify", tiny_package, "--variant", "cpu-int8")
    assert done.returncode == 2
    assert "has no variant cpu-int8; it has canonical" in done.stderr
    done = isoformer("verify", tiny_package, "--variant", "canonical", "--runtime", "ort", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1])["matrix"][0]["asked"] == "ort"

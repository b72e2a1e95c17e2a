"""Attention weights of a package, their pictures, and the command that draws them."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from isoformer.export.source import resolve
from isoformer.models.families import encoder
from isoformer.runtime import InputError, IsoformerError, PackageError, Session, attention_map, cli
from isoformer.runtime.attention_map import AttentionMap
from isoformer.runtime.cases import sample
from isoformer.runtime.package import Package
from isoformer.runtime.verify import verify
from tests.conftest import export_small

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefg"]
LAYERS, HEADS = 2, 3
TEXTS = ["a b c d e", "f g"]
TOKENS = (("[CLS]", *"abcde", "[SEP]"), ("[CLS]", "f", "g", "[SEP]", "[PAD]", "[PAD]", "[PAD]"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A BERT of random weights, large enough that its attention is not even, with a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=33,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        intermediate_size=53,
        max_position_embeddings=150,
        initializer_range=0.3,
    )
    torch.manual_seed(3)
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def package(checkpoint: Path, tmp_path_factory) -> Package:
    found = resolve(str(checkpoint), options=["output_attentions=true"])
    path = tmp_path_factory.mktemp("package") / "bert"
    return export_small(found.model, found.signature, path, task=found.task, files=found.files)


@pytest.fixture(scope="module")
def maps(package: Package) -> list[AttentionMap]:
    return attention_map.compute(Session(package), TEXTS)


class TestOutputs:
    """The outputs of exported packages, in ONNX Runtime."""

    def test_they_are_those_of_transformers(self, checkpoint, package):
        model = BertModel.from_pretrained(checkpoint, attn_implementation="eager").double().eval()
        ids = np.random.default_rng(5).integers(4, len(WORDS), (3, 7))
        mask = (np.arange(7) < np.array([[7], [4], [1]])).astype(np.int64)
        outputs = Session(package).run({"input_ids": ids, "attention_mask": mask})
        with torch.no_grad():
            theirs = model(torch.from_numpy(ids), torch.from_numpy(mask), output_attentions=True).attentions
        for layer, expected in enumerate(theirs):
            have, real = outputs[f"attentions.{layer}"].transpose(0, 2, 1, 3), mask == 1
            assert have.std() > 0.1
            allowed = 2 * package.manifest["tolerances"][f"attentions.{layer}"]["absolute"]
            np.testing.assert_allclose(have[real], expected.numpy().transpose(0, 2, 1, 3)[real], atol=allowed, rtol=0)
        assert (outputs["attention_visible"] == (mask == 1)[:, None, None, :]).all()

    @pytest.mark.parametrize(
        ("opset", "options"),
        [
            (20, {}),
            (20, {"task": "classify", "labels": ("no", "yes"), "norm_order": "pre"}),
            (23, {"task": "fill-mask", "mask_rank": 3, "position_rule": "index", "num_kv_heads": 1}),
        ],
        ids=["embed", "classify", "fill-mask"],
    )
    def test_every_task_and_opset(self, tmp_path, opset, options):
        config = replace(encoder.TINY, output_attentions=True, num_layers=1, max_positions=31, **options)
        torch.manual_seed(7)
        model, signature = encoder.Model(config), encoder.signature(config)
        made = export_small(model, signature, tmp_path / "out", task=encoder.task(config), opset=opset)
        session = Session(made)
        report = verify(made, session.run, "onnxruntime cpu", seed=3)
        assert report.passed, [failure.line() for failure in report.failures]
        compared = {(c.check, c.output) for c in report.comparisons}
        checks = ("golden", "grid", "relation")
        assert compared >= {(check, output) for check in checks for output in ("attentions.0", "attention_visible")}
        rng = np.random.default_rng(2)
        inputs = sample(made.signature, {"batch_size": 3, "sequence_length": 7}, "sample", rng)
        if config.mask_rank == 3:
            inputs["attention_mask"] = rng.integers(0, 2, (3, 7, 7))
            inputs["attention_mask"][1, 4] = 0
        outputs = session.run(inputs)
        visible = outputs["attention_visible"]
        wanted = inputs["attention_mask"] if config.mask_rank == 3 else inputs["attention_mask"][:, None]
        assert visible.dtype == bool
        assert (visible == (wanted != 0)[:, None]).all()
        for layer in range(config.num_layers):
            weights = outputs[f"attentions.{layer}"]
            hidden, empty = np.broadcast_to(~visible, weights.shape), ~visible.any(-1)
            assert hidden.any()
            assert empty.any()
            assert (weights[hidden] == 0).all()
            assert (weights[~hidden] > 0).all()
            sums = weights.sum(-1)
            np.testing.assert_allclose(sums, np.broadcast_to(~empty, sums.shape), atol=5e-7, rtol=0)

    def test_without_the_option_attention_stays_one_operator(self, tiny_package, package):
        operators = json.loads((tiny_package / "isoformer.json").read_text())["operators"]
        assert operators["Attention"] == encoder.TINY.num_layers
        assert "Softmax" not in operators
        assert "Attention" not in package.manifest["operators"]
        assert package.manifest["operators"]["Softmax"] == LAYERS


class TestCompute:
    def test_a_batch_of_texts(self, package, maps):
        session = Session(package)
        ids = np.array([[WORDS.index(token) for token in tokens] for tokens in TOKENS])
        outputs = session.run({"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)})
        for row, found in enumerate(maps):
            assert (found.text, found.tokens) == (TEXTS[row], TOKENS[row])
            assert (found.layers, found.heads) == ((0, 1), (0, 1, 2))
            assert found.weights.shape == found.visible.shape == (LAYERS, HEADS, 7, 7)
            for layer in range(LAYERS):
                np.testing.assert_array_equal(found.weights[layer], outputs[f"attentions.{layer}"][row])
            assert (found.visible == (ids[row] != 0)).all()

    def test_some_layers_and_heads_in_the_order_asked_for(self, package, maps):
        (found,) = attention_map.compute(Session(package), TEXTS[:1], [1], [2, 0, 2])
        assert (found.layers, found.heads) == ((1,), (2, 0))
        np.testing.assert_allclose(found.weights[0], maps[0].weights[1, [2, 0]], atol=1e-6)

    @pytest.mark.parametrize(
        ("layers", "heads", "words"),
        [
            ([2], [], "there is no layer 2; this model has layers 0 to 1"),
            ([0, -1], [], "there is no layer -1; this model has layers 0 to 1"),
            ([], [3], "there is no head 3; this model has heads 0 to 2"),
        ],
    )
    def test_numbers_out_of_range(self, package, layers, heads, words):
        with pytest.raises(InputError, match=words):
            attention_map.compute(Session(package), TEXTS, layers, heads)

    def test_a_package_without_weights(self, tiny_package):
        with pytest.raises(PackageError, match="export an encoder -o output_attentions=true"):
            attention_map.compute(Session(tiny_package), TEXTS)

    def test_pictures_that_would_be_too_large(self, package):
        session = Session(package)
        message = r"2 layers × 3 heads of 142 tokens .* choose some with --layer and --head, or a shorter text"
        with pytest.raises(InputError, match=message):
            attention_map.compute(session, ["a " * 140])
        (found,) = attention_map.compute(session, ["a " * 140], [0], [1])
        assert found.weights.shape == (1, 1, 142, 142)
        with pytest.raises(InputError, match="33 texts; 32 at most"):
            attention_map.compute(session, ["a"] * 33)

    def test_json_has_none_where_masked(self, maps):
        record = json.loads(json.dumps(maps[1].to_dict()))
        assert {key: record[key] for key in ("input", "tokens", "layers", "heads")} == {
            "input": "f g",
            "tokens": list(TOKENS[1]),
            "layers": [0, 1],
            "heads": [0, 1, 2],
        }
        weights = np.array(record["weights"], dtype=np.float64)  # None becomes NaN
        assert np.isnan(weights[..., 4:]).all()
        np.testing.assert_allclose(weights[..., :4], maps[1].weights[..., :4], atol=5.1e-7)


def read_png(path: Path) -> Image.Image:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.convert("RGB")


class TestDraw:
    def test_every_cell_has_the_colour_of_its_weight(self, maps):
        """Pixels in the middle of the cells: one scale for all panels, grey where masked."""
        uneven = maps[1].weights * np.linspace(0.2, 1, LAYERS * HEADS).reshape(LAYERS, HEADS, 1, 1)
        figure = attention_map.draw(replace(maps[1], weights=uneven))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
        panels, bar = figure.axes[:-1], figure.axes[-1]
        assert bar.get_ylabel() == "attention weight"
        scale, top = colormaps["viridis"], uneven.max()
        for panel, weights in zip(panels, uneven.reshape(-1, 7, 7), strict=True):
            for query, key in np.ndindex(7, 7):
                x, y = (int(n) for n in panel.transData.transform((key, query)))
                colour = pixels[len(pixels) - 1 - y, x]
                if key < 4:
                    expected = np.array(scale(weights[query, key] / top)[:3]) * 255
                    assert np.abs(colour - expected).max() <= 2, (panel.get_title(), query, key)
                else:
                    assert np.ptp(colour) == 0  # grey, which is no colour of the scale

    def test_the_panels_stand_in_rows_of_layers_and_columns_of_heads(self, maps):
        panels = attention_map.draw(maps[0]).axes[:-1]
        assert [axes.get_title() for axes in panels[:HEADS]] == ["head 0", "head 1", "head 2"]
        assert [axes.get_ylabel() for axes in panels[::HEADS]] == ["layer 0", "layer 1"]
        places = [axes.get_position() for axes in panels]
        assert [place.x0 for place in places[:HEADS]] == sorted({place.x0 for place in places})
        assert places[0].y0 > places[HEADS].y1

    def test_tokens_stand_on_both_axes_as_they_are(self, maps):
        tokens = ("$x^2$", "猫", "a" * 40, "\n", "Ġthe", "f", "[SEP]")
        panels = attention_map.draw(replace(maps[0], tokens=tokens)).axes[:-1]
        labels = [label for axes in panels for label in (*axes.get_yticklabels(), *axes.get_xticklabels())]
        shown = ["$x^2$", "\\u732b", "a" * 15 + "…", "\\n", "Ġthe", "f", "[SEP]"]
        assert [label.get_text() for label in labels] == shown * (LAYERS + HEADS)
        assert not any(label.get_parse_math() for label in labels)

    def test_a_legend_where_something_is_masked(self, maps):
        assert not attention_map.draw(maps[0]).legends
        (legend,) = attention_map.draw(maps[1]).legends
        assert [text.get_text() for text in legend.get_texts()] == ["masked"]

    def test_a_map_of_nothing_but_masked_cells(self, maps, tmp_path):
        nothing = replace(maps[0], weights=maps[0].weights * 0, visible=~maps[0].visible)
        attention_map.save(nothing, tmp_path / "nothing.png")
        assert read_png(tmp_path / "nothing.png").size[0] > 100

    @pytest.mark.parametrize(("layers", "heads", "length"), [(6, 12, 13), (6, 12, 30), (1, 1, 1), (1, 1, 300)])
    def test_sizes_grow_with_tokens_and_panels_up_to_a_limit(self, layers, heads, length):
        cell, width, height = attention_map._layout(layers, heads, length)
        assert attention_map.CELL[0] <= cell <= attention_map.CELL[1]
        assert width >= heads * length * cell
        assert height >= layers * length * cell
        attention_map._refuse_large(layers, heads, length)
        for more in ((6, 12, 60), (1, 1, 400), (1, 400, 13)):
            with pytest.raises(InputError, match="too large"):
                attention_map._refuse_large(*more)


@pytest.fixture
def call(monkeypatch, capsys):
    """A function that runs the command line here: status, standard output, standard error."""

    def run(*arguments: Any, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["isoformer", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as caught:
            cli.main()
        status = caught.value.code
        return (status if isinstance(status, int) else 0, *capsys.readouterr())

    return run


class TestCommand:
    def test_one_picture(self, isoformer, package, tmp_path):
        done = isoformer("attention", package.path, TEXTS[0], "--png", "map.png", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "wrote map.png\n"), done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["map.png"]
        picture = read_png(tmp_path / "map.png")
        _, width, height = attention_map._layout(LAYERS, HEADS, 7)
        for size, inches in zip(picture.size, (width, height), strict=True):
            assert inches * attention_map.DPI < size < (inches + 3) * attention_map.DPI  # labels and the bar
        assert len(set(picture.crop((300, 300, 900, 900)).get_flattened_data())) > 20

    def test_different_heads_are_different_pictures(self, call, package, tmp_path):
        def picture(name: str, *options: str) -> bytes:
            path = tmp_path / name
            assert call("attention", package.path, TEXTS[0], "--png", path, *options)[0] == 0
            return read_png(path).tobytes()

        one = picture("one.png", "--layer", "1", "--head", "0")
        again = picture("again.png", "--layer", "1", "--head", "0")
        other = picture("other.png", "--layer", "1", "--head", "1")
        assert one == again
        assert one != other

    def test_several_texts_from_standard_input_as_json(self, call, package, maps, tmp_path):
        status, stdout, stderr = call(
            "attention", package.path, "--png", tmp_path / "m.png", "--json", stdin="\n".join(TEXTS)
        )
        assert (status, stderr) == (0, "")
        rows = [json.loads(line) for line in stdout.splitlines()]
        files = [tmp_path / "m-1.png", tmp_path / "m-2.png"]
        assert rows == [found.to_dict() | {"png": str(file)} for found, file in zip(maps, files, strict=True)]
        assert sorted(tmp_path.iterdir()) == files
        sizes = [read_png(file).size for file in files]
        assert abs(sizes[0][1] - sizes[1][1]) < 50

    def test_mistakes(self, call, package, tiny_package, tmp_path):
        """One line, exit status 2, and nothing written."""
        (tmp_path / "taken.png").write_text("dear")
        (tmp_path / "taken-2.png").write_text("dear")
        (tmp_path / "folder.png").mkdir()
        before = sorted(tmp_path.iterdir())
        right, bert = ("--png", tmp_path / "map.png"), package.path
        for arguments, words in (
            ((tiny_package, "a", *right), "export an encoder -o output_attentions=true"),
            ((tmp_path / "none", "a", *right), "no such folder"),
            ((bert, "a", *right, "--layer", "2"), "layers 0 to 1"),
            ((bert, "a", *right, "--head", "5"), "heads 0 to 2"),
            ((bert, *right), "there is no input"),
            ((bert, "a " * 140, *right), "choose some with --layer and --head"),
            ((bert, "a " * 600, *right), "pass --truncate"),
            ((bert, "a", "--png", tmp_path / "no" / "map.png"), f"there is no folder {tmp_path / 'no'}"),
            ((bert, "a", "--png", tmp_path / "map.jpg"), "does not end in .png"),
            ((bert, "a", "--png", tmp_path / "taken.png"), "--force"),
            ((bert, "a", "b", "--png", tmp_path / "taken.png"), "taken-2.png exists already"),
            ((bert, "a", "--png", tmp_path / "folder.png", "--force"), "is a folder"),
        ):
            status, stdout, stderr = call("attention", *arguments)
            assert (status, stdout, stderr.count("\n")) == (2, "", 1), (arguments, stderr)
            assert stderr.startswith("isoformer: ")
            assert words in stderr
        assert sorted(tmp_path.iterdir()) == before
        assert (tmp_path / "taken.png").read_text() == "dear"

    def test_force_replaces(self, call, package, tmp_path):
        target = tmp_path / "taken.png"
        target.write_text("dear")
        assert call("attention", package.path, "a", "--png", target, "--force")[0] == 0
        read_png(target)
        assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]

    def test_a_failed_picture_leaves_nothing(self, maps, tmp_path, monkeypatch):
        def fail(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
        with pytest.raises(IsoformerError, match=r"m\.png cannot be written: No space left on device"):
            attention_map.save(maps[0], tmp_path / "m.png")
        assert not list(tmp_path.iterdir())

    def test_matplotlib_is_asked_for_only_here(self, package, tmp_path):
        """Without matplotlib everything imports, and the command says what to install."""
        code = f"""
import sys
sys.modules["matplotlib"] = None
from isoformer.runtime import cli
sys.argv = ["isoformer", "attention", {str(package.path)!r}, "a", "--png", {str(tmp_path / "map.png")!r}]
cli.main()
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr == "isoformer: matplotlib is not installed: pip install 'isoformer[plot]'\n"
        loaded = "import sys; from isoformer.runtime import cli; sys.exit('matplotlib' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0

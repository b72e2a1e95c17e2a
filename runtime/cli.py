"""The command `isoformer`. Exit status: 0 done, 1 a mismatch found, 2 a mistake of the user's or a broken package."""

import inspect as inspect_module
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from isoformer.runtime import attention_map, convert_command, demo, gates, tasks, tuning, verify_command
from isoformer.runtime import bench as benchmark
from isoformer.runtime.batch import command as batch_command
from isoformer.runtime.chat import Chat
from isoformer.runtime.console import err, out
from isoformer.runtime.console import export_half as _export_half
from isoformer.runtime.console import print_matrix as _print_matrix
from isoformer.runtime.console import progress as _progress
from isoformer.runtime.errors import InputError, IsoformerError, PackageError
from isoformer.runtime.forms import one_line
from isoformer.runtime.generation import Settings, Stats
from isoformer.runtime.options import PackagePath, Precision, Provider, Threads, precision_name
from isoformer.runtime.package import MODEL, Package, TensorSpec, load
from isoformer.runtime.providers import ProviderName
from isoformer.runtime.serve import command as serve_command
from isoformer.runtime.session import Graphs, Session, open_fastest
from isoformer.runtime.tasks import generate
from isoformer.runtime.tune import command as tune_command

app = typer.Typer(
    name="isoformer",
    help="Masked attention, written once in PyTorch, shipped as ONNX, proven to compute the same.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("batch")(batch_command.batch)
app.command("serve")(serve_command.serve)
app.command("tune")(tune_command.tune)

VALUES = {
    "mask": "0 and 1",
    "lengths": "lengths",
    "prefix": "lengths",
    "segments": "segments from 1, 0 is padding",
    "indices": "places",
}
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object a line")]
# The options of generation; what is not given is left to `Settings`.
MaxTokens = Annotated[int | None, typer.Option(help="generate: new tokens at most (default: 128, chat 512)")]
Temperature = Annotated[float | None, typer.Option(help="generate: 0 takes the likeliest token, above 0 draws one")]
TopK = Annotated[int | None, typer.Option(help="generate: draw among the K likeliest tokens")]
TopP = Annotated[float | None, typer.Option(help="generate: draw among the likeliest tokens that have P together")]
MinP = Annotated[float | None, typer.Option(help="generate: draw among tokens with P times the likeliest's or more")]
Penalty = Annotated[float | None, typer.Option(help="generate: above 1, tokens that occurred become less likely")]
Beams = Annotated[int | None, typer.Option(help="generate: search with so many beams, not greedily")]
Seed = Annotated[int | None, typer.Option(help="generate: of the draws; by default another each time")]
Stop = Annotated[list[str] | None, typer.Option(help="generate: a string that ends the text (again for more)")]
ShowStats = Annotated[bool, typer.Option("--stats", help="generate: tokens and times on standard error")]
CHAT_TOKENS = 512


def main() -> None:
    """Runs the command line; every error meant for people becomes one line on standard error."""
    try:
        app()
    except IsoformerError as error:
        print(f"isoformer: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except MemoryError:
        print("isoformer: there is not enough memory; give less at once, or a smaller model", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("isoformer: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


@app.command()
def export(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="the package folder to write")],
    model: Annotated[
        str,
        typer.Option(
            "-m",
            "--model",
            help="a checkpoint folder, a GGUF file, a CTranslate2 model.bin, "
            "a family's name (random weights), module:callable",
        ),
    ],
    task: Annotated[str | None, typer.Option(help="of a checkpoint; by default the one that it was saved for")] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset, 20 to 25; below 23 attention is taken apart")] = 23,
    precision: Annotated[
        str,
        typer.Option(help="fp32; as a variant also int8 (what generates) and int4 (decoders); fp16: see --provider"),
    ] = "fp32",
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="int8, int4, cuda: a text for the quality gate, not its own")
    ] = None,
    sound: Annotated[
        Path | None, typer.Option(metavar="FILE", help="int8 of transcribe: a recording for the quality gate")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("-o", "--option", metavar="NAME=VALUE", help="set a field of the configuration")
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(help="also write the graphs that this provider runs fast: openvino (encoders), cuda (float16)"),
    ] = None,
    reproducible: Annotated[
        bool,
        typer.Option(
            "--reproducible",
            help="int8 of decoders: the same tokens in Python, Node and browsers; a token takes 1.4 to 1.9 times as "
            "long, a long prompt 3.6 times",
        ),
    ] = False,
    cache: Annotated[
        str,
        typer.Option(
            help="fp32; int8: keys and values of int8 and int4 decoders in 8 bits, for long texts (Python alone)"
        ),
    ] = "fp32",
    layout: Annotated[
        str | None, typer.Option(help=f"write another program's folder instead: {convert_command.NAMES}")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the package at OUTPUT")] = False,
) -> None:
    """Write MODEL to OUTPUT as a package, verified against PyTorch in float64."""
    chosen = precision_name(precision)
    gated = chosen != "float32"
    for name, given, has_gate in (("--text", text, gated or provider == "cuda"), ("--sound", sound, gated)):
        if given is not None and not has_gate:
            raise InputError(
                f"{name} {given} is for a quality gate, which float32 has not (--precision, --provider cuda)"
            )
    if text is not None and sound is not None:
        raise InputError("give --text, or --sound for transcribe, not both")
    if layout is not None and cache == "int8":
        raise InputError(f"--cache int8 is for isoformer's Python alone; leave it out, or --layout {layout}")
    sample = None if text is None else "\n".join(_texts([], text))
    source = _export_half("source")
    with convert_command.package_for(output, layout, force=force) as target:
        found = source.resolve(model, task, option or [])
        for line in found.notes:
            err.print(line, highlight=False)
        with _progress() as show:
            package = _export_half("exporter").export(
                found.model,
                found.signature,
                target,
                task=found.task,
                opset=opset,
                files=found.files,
                provenance=found.provenance,
                precision=chosen,
                text=sample,
                sound=sound,
                providers=() if provider in (None, "cpu") else (provider,),
                reproducible=reproducible,
                cache="float32" if cache == "fp32" else cache,
                force=force,
                progress=show,
            )
    for part in package.graphs.values():
        _print_evidence(part)
    out.print(f"wrote {output}", highlight=False, markup=False, soft_wrap=True)


def _print_evidence(part: Package) -> None:
    """What export() measured of one graph, a line a runtime and a variant."""
    where = f"{part.graph}, " if part.graph != MODEL else ""
    for runtime, entry in part.manifest["parity"].items():
        out.print(
            f"{where}{runtime}: {entry['cases']} cases, {entry['values']:,} values within the bound, "
            f"the largest error at {entry['worst_share_of_bound']:.2f} of it",
            highlight=False,
            soft_wrap=True,
        )
    for name, variant in part.variants.items():
        if gate := variant.get("gate"):
            out.print(f"{where}{name}: {gates.line(gate)}", highlight=False, soft_wrap=True)
    for note in part.manifest["notes"]:
        err.print(note, highlight=False, markup=False)


app.command("convert")(convert_command.convert)
app.command(name="verify")(verify_command.verify)


@app.command()
def run(
    package: PackagePath,
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="[INPUT]...", help="texts, or sound or picture files")
    ] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="a file of texts, one a line")] = None,
    provider: Provider = "cpu",
    precision: Precision = None,
    threads: Threads = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="cut texts that are too long for the model")] = False,
    as_json: AsJson = False,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    beams: Beams = None,
    seed: Seed = None,
    stop: Stop = None,
    language: Annotated[
        str | None, typer.Option(help="transcribe: spoken, such as de (default: the likeliest)")
    ] = None,
    task: Annotated[str | None, typer.Option(help="transcribe: transcribe, or translate (into English)")] = None,
    timestamps: Annotated[
        bool | None, typer.Option("--timestamps/--no-timestamps", help="transcribe: with times, which is the default")
    ] = None,
    srt: Annotated[Path | None, typer.Option(metavar="OUT", help="transcribe: write subtitles (SubRip)")] = None,
    output: Annotated[
        Path | None, typer.Option("-O", "--output", metavar="PNG", help="generate-image: where the picture goes")
    ] = None,
    stats: ShowStats = False,
) -> None:
    """Do PACKAGE's task on texts or files: arguments, the lines of a file, or the lines of standard input."""
    texts = _texts(inputs or [], file)
    loaded = load(package)
    module = tasks.of(loaded)
    if srt is not None and not hasattr(module, "srt"):
        raise InputError(f"--srt: not for the task {loaded.task['name']}, which {package} is for")
    if srt is not None and (srt.is_dir() or not srt.parent.is_dir()):
        raise InputError(f"{srt} cannot be written: {'it is a folder' if srt.is_dir() else 'its folder is not there'}")
    if srt is not None and len(texts) > 1:
        raise InputError(f"--srt: subtitles are of one sound file, and {len(texts)} are given; call once for each")
    chosen = _given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        beams=beams,
        seed=seed,
    )
    more: dict[str, Any] = {}
    own = _given(language=language, task=task, timestamps=timestamps, output=output)
    given = chosen | own | _given(stop=stop or None, stats=stats or None)
    taken = set(inspect_module.signature(module.run).parameters)
    if "settings" in taken:
        taken |= {field.name for field in fields(Settings)}
        more = {"settings": Settings(**chosen) if chosen else None, "stats": Stats()}
        more |= {"stop": stop or ()} if "stop" in taken else {}
    more |= own
    if seed is not None and "settings" not in taken:
        more["seed"] = seed
    if foreign := [name for name in given if name not in taken]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise InputError(f"{names}: not for the task {loaded.task['name']}, which {package} is for")
    session = _fastest(loaded, provider, precision, threads)
    if module is generate and isinstance(session, Session) and len(texts) == 1 and not as_json and not truncate:
        _write(generate.stream(session, texts[0], **more))
    else:
        results = _run_task(module, session, texts, as_json, truncate=truncate, **more)
        if srt is not None:
            _replace_file(srt, module.srt(results))
    if stats:
        print(more["stats"].line(), file=sys.stderr)


@app.command("serve-demo")
def serve_demo(
    packages: Annotated[list[Path], typer.Argument(metavar="PACKAGE...", help="package folders")],
    host: Annotated[str, typer.Option(help="the address to listen at; this machine's own by default")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free")] = 8000,
) -> None:
    """Serve a page that runs PACKAGES in a browser: embeddings, generation, attention under a mask that is drawn."""
    with demo.serve(packages, host, port) as server:
        out.print(f"http://{host}:{server.server_address[1]}/demo/  (Ctrl-C ends it)", highlight=False, soft_wrap=True)
        server.serve_forever()


def _fastest(package: Package, provider: ProviderName, precision: str | None, threads: int | None) -> Session | Graphs:
    """The package's fastest graph, or its graphs where there are several."""
    chosen = None if precision is None else precision_name(precision)
    return open_fastest(package, provider, precision=chosen, threads=threads)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _write(pieces: Iterator[str]) -> None:
    """Text as it comes and as it stands, and a line feed."""
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def _replace_file(path: Path, text: str) -> None:
    """The text at `path`, whole or not at all."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def _run_task(
    module: ModuleType, session: Session | Graphs, texts: list[str], as_json: bool, **options: Any
) -> list[dict[str, Any]]:
    """The results, which are printed."""
    with _progress() as show:
        done = 0

        def step(more: int) -> None:
            nonlocal done
            done += more
            show("inputs", done, len(texts))

        if "heard" in inspect_module.signature(module.run).parameters:
            options["heard"] = lambda done, total: show("seconds of sound", int(done), int(total))
        results = module.run(session, texts, progress=step, **options)
    if as_json:
        for result in results:
            print(json.dumps(result, ensure_ascii=False))
    else:
        module.show(results, out)
    return results


@app.command()
def chat(
    package: PackagePath,
    system: Annotated[str | None, typer.Option(help="what the model is told before the dialogue")] = None,
    provider: Provider = "cpu",
    precision: Precision = None,
    threads: Threads = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
    stop: Stop = None,
    stats: ShowStats = False,
) -> None:
    """Talk with PACKAGE: a message a line, from the terminal or standard input. /reset starts anew, /exit ends."""
    settings = _given(
        max_tokens=CHAT_TOKENS if max_tokens is None else max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    chosen, session = Settings(**settings), _fastest(load(package), provider, precision, threads)
    if isinstance(session, Graphs):
        raise PackageError(f"{package} holds no dialogue: its task is {session.package.task.get('name')}")
    dialogue = Chat(session, system=system, settings=chosen, stop=stop or ())
    for message in _messages():
        if message == "/exit":
            break
        if message == "/reset":
            dialogue.reset()
            continue
        try:
            _write(dialogue.say(message))
        except InputError as error:
            if not sys.stdin.isatty():
                raise
            print(f"isoformer: {error}", file=sys.stderr)
            continue
        if stats:
            print(dialogue.stats.line(), file=sys.stderr)


def _messages() -> Iterator[str]:
    """The lines of standard input that are not empty, with a prompt where it is a terminal."""
    if sys.stdin.isatty():
        lines = iter(lambda: input("> "), None)
    else:
        lines = (line.decode("utf-8") for line in sys.stdin.buffer)
    try:
        yield from filter(None, (line.strip() for line in lines))
    except EOFError:
        print()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text: {error}") from None


@app.command()
def attention(
    package: PackagePath,
    png: Annotated[Path, typer.Option("--png", metavar="OUT", help="the picture to write; OUT-1, … of several texts")],
    inputs: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="texts")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="a file of texts, one a line")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="this layer, from 0 (again for more; default: all)")] = None,
    head: Annotated[list[int] | None, typer.Option(help="this head, from 0 (again for more; default: all)")] = None,
    provider: Provider = "cpu",
    threads: Threads = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="cut texts that are too long for the model")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace pictures that exist")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw PACKAGE's attention weights on texts, one batch: a panel for every layer (down) and head (across)."""
    texts = _texts(inputs or [], file)
    attention_map.require_matplotlib()
    files = attention_map.targets(png, len(texts), force=force)
    session = Session(package, provider, threads=threads)
    maps = attention_map.compute(session, texts, layer or (), head or (), truncate=truncate)
    for found, target in zip(maps, files, strict=True):
        attention_map.save(found, target)
        if as_json:
            print(json.dumps(found.to_dict() | {"png": str(target)}, ensure_ascii=False))
        else:
            out.print(f"wrote {target}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def families(as_json: AsJson = False) -> None:
    """List the families: what each is, its tasks, its inputs, and the checkpoints that it reads."""
    found = _export_half("source").families()
    if as_json:
        for family in found:
            print(json.dumps(family))
        return
    table = Table(show_lines=True)
    for heading in ("family", "tasks", "inputs", "checkpoints"):
        table.add_column(heading, overflow="fold")
    for family in found:
        graphs = family["inputs"]
        inputs = [", ".join(_shortened(names)) for names in graphs.values()]
        lines = inputs if len(graphs) == 1 else [f"{graph}: {line}" for graph, line in zip(graphs, inputs, strict=True)]
        table.add_row(
            Text.assemble((family["family"], "bold"), f"\n{family['about'].split(':')[0]}"),
            ", ".join(family["tasks"]),
            "\n".join(lines),
            ", ".join(family["checkpoints"]),
        )
    out.print(table)


def _shortened(names: list[str]) -> list[str]:
    """The names, those of the cache as one."""
    return list(dict.fromkeys(re.sub(r"^past_key_values\..*", "past_key_values.*", name) for name in names))


@app.command()
def inspect(package: PackagePath, as_json: AsJson = False) -> None:
    """Show what PACKAGE is: inputs and outputs, operators, precision, parity, provenance."""
    loaded = load(package)
    manifest = loaded.manifest
    if as_json:
        tuned = tuning.summary(loaded)
        print(json.dumps(_without_cases(manifest) | ({} if tuned is None else {"tuned": tuned})))
        return
    _print_facts(_facts(loaded))
    for part in loaded.graphs.values():
        _print_graph(part)


def _print_facts(rows: Iterable[tuple[str, str]]) -> None:
    facts = Table(show_header=False, box=None)
    for name, value in rows:
        facts.add_row(Text(name, style="bold"), value)
    out.print(facts)


def _range(spec: TensorSpec) -> str:
    """What the values of an input without a kind of its own are."""
    if spec.high is None or spec.dtype.startswith("float"):
        return ""
    return f"{spec.low} to {spec.high - 1}"


def _print_graph(part: Package) -> None:
    """One graph: facts, edge, operators, parity."""
    where = "" if part.graph == MODEL else f"{part.graph}: "
    _print_facts(_graph_facts(part))
    edges = Table(title=f"{where}inputs and outputs", title_justify="left")
    for column in ("", "name", "dtype", "axes", "values"):
        edges.add_column(column, overflow="fold")
    for kind, specs in (("in", part.signature.inputs), ("out", part.signature.outputs)):
        for spec in specs:
            values = VALUES.get(spec.kind, _range(spec))
            default = "" if spec.default is None else f"{', ' if values else ''}default {spec.default}"
            edges.add_row(kind, spec.name, spec.dtype, ", ".join(map(str, spec.axes)), values + default)
    out.print(edges)
    operators = ", ".join(f"{name} {n}" for name, n in part.manifest["operators"].items())
    out.print(f"{where}operators: {operators}", highlight=False)
    for runtime, entry in part.manifest["parity"].items():
        _print_matrix(f"{where}{runtime}", entry["by_mask_and_length"])


@app.command()
def bench(
    package: PackagePath,
    batch: Annotated[str, typer.Option(help="batch sizes, with commas")] = "1,8",
    length: Annotated[str, typer.Option(help="sequence lengths, with commas")] = "16,128",
    provider: Provider = "cpu",
    precision: Precision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure PACKAGE on this machine: latency, tokens a second, memory."""
    batches, lengths = _numbers("--batch", batch), _numbers("--length", length)
    rows, parts = [], load(package).graphs
    several = len(parts) > 1
    with _progress() as show:
        for part in parts.values():
            for row in benchmark.measure(_to_measure(part, provider, precision, threads), batches, lengths):
                rows.append({"graph": part.graph} | row if several else row)
                show("measuring", len(rows), len(batches) * len(lengths))
                if as_json:
                    print(json.dumps(rows[-1]), flush=True)
    if as_json:
        return
    table = Table()
    if several:
        table.add_column("graph")
    for name in ("batch", "length", "median ms", "p90 ms", "tokens/s", "peak MB"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            *([row["graph"]] if several else []),
            str(row["batch"]),
            str(row["length"]),
            f"{row['median_ms']:.2f}",
            f"{row['p90_ms']:.2f}",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['peak_mb']:.0f}",
        )
    out.print(table)


def _to_measure(part: Package, provider: ProviderName, precision: str | None, threads: int | None) -> Session:
    """The canonical graph's session, or that of the provider's own or of a precision."""
    chosen = None if precision is None else precision_name(precision)
    variant = part.fastest(provider, chosen) if chosen or provider != "cpu" else None
    return Session(part, provider, threads=threads, variant=variant)


def _facts(package: Package) -> Iterator[tuple[str, str]]:
    manifest = package.manifest
    yield "package", f"{manifest['name']} at {package.path}"
    yield "task", package.task.get("name", "none")
    if "family" in manifest:
        yield "family", manifest["family"]
    source = manifest.get("source") or {}
    for key, value in (source if isinstance(source, dict) else {"source": source}).items():
        yield key.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value)
    yield "made with", ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    if (tuned := tuning.summary(package)) is not None:
        yield "tuned", tuned


def _without_cases(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest without the lists of cases."""
    found = {key: value for key, value in manifest.items() if key not in ("grid", "golden")}
    if "graphs" in found:
        found["graphs"] = {name: _without_cases(records) for name, records in found["graphs"].items()}
    return found


def _graph_facts(package: Package) -> Iterator[tuple[str, str]]:
    manifest = package.manifest
    yield "parameters", f"{manifest['parameters']:,}"
    yield "precision", f"{manifest['precision']}, ONNX opset {manifest['opset']}"
    for name, variant in package.variants.items():
        gate = variant.get("gate")
        cache = "" if variant["cache"] == "none" else f", {variant['cache']} cache"
        cache += f" of {variant['cache_dtype']}" if "cache_dtype" in variant else ""
        cache += ", reproducible" if variant.get("reproducible") else ""
        yield "variant", f"{name}{cache}, {gates.line(gate)}" if gate else f"{name}{cache}"
    yield "padding", f"on the {' or '.join(package.signature.padding)} never changes an answer"
    if manifest.get("notes"):
        yield "notes", "; ".join(manifest["notes"])
    for name, entry in manifest["tolerances"].items():
        yield f"tolerance of {name}", f"{entry['absolute']:.1e}, {entry['factor']:g} times PyTorch float32's own error"


def _texts(inputs: list[str], file: Path | None) -> list[str]:
    if inputs and file:
        raise InputError("give texts or --file, not both")
    if file is not None:
        try:
            inputs = _lines(file.read_bytes())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read as UTF-8 text: {error}") from None
    elif not inputs and not sys.stdin.isatty():
        try:
            inputs = _lines(sys.stdin.buffer.read())
        except UnicodeDecodeError as error:
            raise InputError(f"standard input is not UTF-8 text: {error}") from None
    if not inputs:
        raise InputError("there is no input: give texts, --file, or lines on standard input")
    return inputs


def _lines(content: bytes) -> list[str]:
    """The lines, split at line feeds alone: other separators of Unicode belong to the text."""
    text = content.decode("utf-8-sig").removesuffix("\n")
    return [line.removesuffix("\r") for line in text.split("\n")] if text else []


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} takes whole numbers with commas, not {text!r}") from None
    if min(numbers) < 1:
        raise InputError(f"{option} takes numbers from 1, not {text!r}")
    return numbers


if __name__ == "__main__":
    main()

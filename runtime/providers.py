"""Execution providers: what each is called in ONNX Runtime and how it is set up. None falls back in silence."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from isoformer.runtime.errors import IsoformerError, ProviderError
from isoformer.runtime.saturation import EXACT, products_saturate
from isoformer.runtime.subnormals import flushed

if TYPE_CHECKING:
    import onnxruntime

ProviderName = Literal["cpu", "cuda", "openvino"]
PROVIDERS: tuple[str, ...] = get_args(ProviderName)
# Up to 1.27 a query row without keys is NaN or the mean of the values at opset 23; 1.31 is the oldest that
# all of the parity grid was run on.
OLDEST = (1, 31)


@dataclass(frozen=True)
class Provider:
    """ONNX Runtime's name for a provider, its options, and graph optimizers that make it slower."""

    full_name: str
    options: dict[str, Any] = field(default_factory=dict)
    disabled_optimizers: tuple[str, ...] = ()


_PROVIDERS = {
    # SkipLayerNormalization and BiasGelu are slower than the operators that they replace: see
    # docs/decisions/optimizers.md.
    "cpu": Provider("CPUExecutionProvider", disabled_optimizers=("SkipLayerNormFusion", "BiasGeluFusion")),
    # TF32 would round every product to 10 bits of mantissa; a float32 graph computes in float32.
    "cuda": Provider("CUDAExecutionProvider", {"use_tf32": "0"}),
    # A plugin: its options depend on the precision, see `_add_openvino`.
    "openvino": Provider("OpenVINOExecutionProvider"),
}
# What OpenVINO is told to compute in. By itself it takes bfloat16 where the processor has it, and says nothing.
_OPENVINO_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}

# Operators that compute shapes and indices: ONNX Runtime keeps them on the CPU by design.
_SHAPE_OPERATORS = {"Shape", "Concat", "Gather", "Slice", "Unsqueeze", "Squeeze", "Cast", "Range", "Add", "Mul", "Sub"}
_SHAPE_OPERATORS |= {"Constant", "ConstantOfShape", "Reshape", "Expand", "Equal", "Where", "ReduceProd", "Max", "Min"}


def onnxruntime_module() -> Any:
    """The onnxruntime module; IsoformerError says how to install one."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise IsoformerError(
            "onnxruntime is not installed: pip install 'isoformer[cpu]' (or 'isoformer[gpu]' for CUDA)"
        ) from None
    if tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < OLDEST:
        raise IsoformerError(
            f"onnxruntime {onnxruntime.__version__} is too old: its masked rows may be wrong; "
            f"pip install --upgrade 'isoformer[cpu]' (or 'isoformer[gpu]') brings {OLDEST[0]}.{OLDEST[1]} or later"
        )
    return onnxruntime


def open_session(
    model: str,
    provider: str = "cpu",
    threads: int | None = None,
    profile: bool = False,
    weights: str | None = None,
    precision: str = "float32",
    spinning: bool = True,
    fusions: bool = False,
    shared: bool = False,
) -> onnxruntime.InferenceSession:
    """An InferenceSession that runs on the provider that was asked for, or ProviderError.

    weights: the folder of the files that the model names, where it is not the model's own. precision: of the
    arithmetic, where the provider could choose another by itself. spinning: ONNX Runtime's threads keep their cores
    busy while they wait for work. fusions: keep the graph optimizers that are switched off for being slower. shared:
    other sessions of this process run in turn with this one, so its threads stop spinning when a run ends.
    """
    ort = onnxruntime_module()
    if provider not in _PROVIDERS:
        raise ProviderError(f"provider {provider!r} is not one of {', '.join(PROVIDERS)}")
    chosen = _PROVIDERS[provider]
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, once, in words of ours
    options.enable_profiling = profile
    if threads is not None:
        options.intra_op_num_threads = threads
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    elif shared:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if provider == "cpu" and products_saturate(ort):
        options.add_session_config_entry(EXACT, "1")
    if provider != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    named: dict[str, Any] = {}
    if provider == "openvino":
        _add_openvino(ort, options, precision, threads)  # a plugin takes the place of the providers' names
    else:
        named = {
            "providers": [(chosen.full_name, chosen.options)],
            "disabled_optimizers": [] if fusions else list(chosen.disabled_optimizers),
        }
        _require_built_in(ort, chosen)
    if provider == "cuda":
        _require_driver()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()
    source: str | bytes = model
    if weights is not None:
        source = Path(model).read_bytes()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", weights)
    with flushed():  # ONNX Runtime sets the mode in the thread that opens its first session, and leaves it so
        session = ort.InferenceSession(source, sess_options=options, **named)
    if provider != "cpu":
        _refuse_fallback(session, chosen)
    return session


def _require_built_in(ort: Any, chosen: Provider) -> None:
    """Raises ProviderError unless this build of ONNX Runtime has the provider."""
    if chosen.full_name not in ort.get_available_providers():
        raise ProviderError(
            f"this onnxruntime has no {chosen.full_name}: pip install 'isoformer[gpu]' "
            "(after pip uninstall onnxruntime; the two overwrite each other), or use --provider cpu"
        )


def _add_openvino(ort: Any, options: Any, precision: str, threads: int | None) -> None:
    """Makes OpenVINO's CPU device the provider of a session, computing in the precision.

    Raises ProviderError without the plugin, without the device, and for a precision that it cannot be held to.
    """
    name = _PROVIDERS["openvino"].full_name
    if precision not in _OPENVINO_PRECISIONS:
        raise ProviderError(f"OpenVINO computes in {', '.join(_OPENVINO_PRECISIONS)} here, not in {precision}")
    if not any(device.ep_name == name for device in ort.get_ep_devices()):
        try:
            import onnxruntime_ep_openvino as plugin  # pyright: ignore[reportMissingImports]

            ort.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as error:  # not installed, or for another release of onnxruntime
            raise ProviderError(
                f"the OpenVINO provider is not there ({' '.join(str(error).split())[:120]}): pip install "
                "'isoformer[openvino]' into an environment without onnxruntime-gpu, or use --provider cpu"
            ) from None
    devices = [
        device
        for device in ort.get_ep_devices()
        if device.ep_name == name and device.device.type == ort.OrtHardwareDeviceType.CPU
    ]
    if not devices:
        raise ProviderError("OpenVINO finds no processor that it runs on; use --provider cpu")
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _OPENVINO_PRECISIONS[precision]}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    options.add_provider_for_devices(devices, {"load_config": json.dumps({"CPU": settings})})


def _require_driver() -> None:
    """Raises ProviderError where there is no NVIDIA driver, before ONNX Runtime says so in many lines."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(library)
    except OSError:
        raise ProviderError(
            f"CUDAExecutionProvider cannot run here: there is no NVIDIA driver ({library}); use --provider cpu"
        ) from None


def _refuse_fallback(session: onnxruntime.InferenceSession, chosen: Provider) -> None:
    """Raises ProviderError when the session, or one of its computing nodes, landed on another provider."""
    if chosen.full_name not in session.get_providers():
        raise ProviderError(
            f"{chosen.full_name} did not start (is there a GPU, its driver, CUDA 13 and cuDNN 9?); use --provider cpu"
            if chosen is _PROVIDERS["cuda"]
            else f"{chosen.full_name} did not start; use --provider cpu"
        )
    session.disable_fallback()
    strayed = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != chosen.full_name
        for node in part.get_nodes()
        if node.op_type not in _SHAPE_OPERATORS
    }
    if strayed:
        raise ProviderError(
            f"{chosen.full_name} does not run {', '.join(sorted(strayed))} of this graph"
            + ("; isoformer export --provider openvino writes one for it" if "Attention" in strayed else "")
        )


def installed() -> list[str]:
    """The providers that this environment has, "cpu" first; whether a graph runs there its session will tell."""
    ort = onnxruntime_module()
    found = [name for name in ("cpu", "cuda") if _PROVIDERS[name].full_name in ort.get_available_providers()]
    if importlib.util.find_spec("onnxruntime_ep_openvino") is not None:
        found.append("openvino")
    return found


def has_fusions_off(provider: str) -> bool:
    """Whether the provider switches off optimizers that `fusions` would keep."""
    return bool(_PROVIDERS[provider].disabled_optimizers)

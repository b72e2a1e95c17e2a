"""The engines that are compared: ours, one for each graph of the package, and the peers."""

from dataclasses import dataclass

from benchmarks.peers.environments import OURS_OPENVINO
from isoformer.runtime.package import Package

FP32, BF16, INT8 = "float32", "bfloat16", "int8"
ANCHOR = "torch-fp32"  # takes its turn beside every other, so that runs of different days can be compared


@dataclass(frozen=True)
class Engine:
    """One way to run the model.

    kind: the function of `worker` that runs it, form: what it opens, below the folder of forms (an absolute path for
    a package), options: what else it is told. environment: of benchmarks/peers/NAME.txt, None: isoformer's own.
    linear, attention: the precision of the products in linear layers and in attention.
    """

    name: str
    label: str
    kind: str
    form: str = ""
    options: tuple[str, ...] = ()
    environment: str | None = None
    linear: str = FP32
    attention: str = FP32
    ours: bool = False

    @property
    def exact(self) -> bool:
        """Whether everything is computed in float32."""
        return self.linear == self.attention == FP32


PEERS = (
    Engine(ANCHOR, "PyTorch fp32", "torch", options=("float32", "eager")),
    Engine("torch-compile-fp32", "torch.compile fp32", "torch", options=("float32", "compile")),
    Engine("torch-bf16", "PyTorch bf16", "torch", options=("bfloat16", "eager"), linear=BF16, attention=BF16),
    Engine(
        "torch-compile-bf16",
        "torch.compile bf16",
        "torch",
        options=("bfloat16", "compile"),
        linear=BF16,
        attention=BF16,
    ),
    Engine("optimum", "Optimum export", "onnxruntime", "optimum/model.onnx"),
    Engine("optimum-O1", "Optimum O1", "onnxruntime", "optimum-O1/model_optimized.onnx"),
    Engine("optimum-O2", "Optimum O2", "onnxruntime", "optimum-O2/model_optimized.onnx"),
    Engine("optimum-O3", "Optimum O3", "onnxruntime", "optimum-O3/model_optimized.onnx"),
    Engine("optimum-int8", "Optimum int8", "onnxruntime", "optimum-int8/model_quantized.onnx", linear=INT8),
    Engine("openvino-fp32", "OpenVINO fp32", "openvino", "openvino/model.xml", ("f32",), "openvino"),
    Engine("openvino-bf16", "OpenVINO bf16", "openvino", "openvino/model.xml", ("bf16",), "openvino", BF16, BF16),
    Engine("openvino-int8", "OpenVINO int8", "openvino", "openvino-int8/model.xml", ("f32",), "openvino", INT8),
    Engine(
        "openvino-int8-bf16",
        "OpenVINO int8, rest bf16",
        "openvino",
        "openvino-int8/model.xml",
        ("bf16",),
        "openvino",
        INT8,
        BF16,
    ),
    Engine("ctranslate2-fp32", "CTranslate2 fp32", "ctranslate2", "ctranslate2", ("float32",), "ctranslate2"),
    Engine("ctranslate2-int8", "CTranslate2 int8", "ctranslate2", "ctranslate2", ("int8",), "ctranslate2", INT8),
)


def ours(package: Package) -> list[Engine]:
    """The package's canonical graph, in isoformer's Session and in a plain one, and every variant that `run` takes.

    Those for OpenVINO by `Session.fastest`, which takes the one for padding where there is some.
    """
    path = str(package.path.resolve())
    found = [
        Engine("isoformer", "isoformer canonical", "isoformer", path, ("cpu", ""), ours=True),
        Engine("onnxruntime-plain", "its graph, plain ONNX Runtime", "onnxruntime", f"{path}/model.onnx", ours=True),
    ]
    for name, variant in package.variants.items():
        if variant["cache"] == "shared" or variant.get("padded"):
            continue
        linear, attention = _precisions(variant["precision"])
        rest = (linear, attention, True)
        if variant["provider"] == "openvino":
            options = (variant["provider"], variant["precision"])
            kind, environment = "isoformer-fastest", OURS_OPENVINO
        else:
            kind, options, environment = "isoformer", (variant["provider"], name), None
        found.append(Engine(f"isoformer-{name}", f"isoformer {name}", kind, path, options, environment, *rest))
    return found


def _precisions(name: str) -> tuple[str, str]:
    """Of linear layers and attention, by the name of a variant's precision."""
    if name == INT8:
        return INT8, FP32
    return (BF16, BF16) if name in (BF16, "bf16") else (FP32, FP32)

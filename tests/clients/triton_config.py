"""Reads a config.pbtxt by Triton's own message, and prints it as JSON: the path is the argument."""

import json
import sys
from pathlib import Path

from google.protobuf import json_format, text_format  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
from tritonclient.grpc import model_config_pb2  # pyright: ignore[reportMissingImports]

config = text_format.Parse(Path(sys.argv[1]).read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
print(json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)))

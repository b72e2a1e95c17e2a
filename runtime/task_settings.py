"""The form of a package's task and its settings, which the tasks rely on."""

from typing import Any

from isoformer.runtime.forms import FormError, either, listed, mapped, name, nullable, number, one_of, text, whole

ID = whole(0, 2**31)
LABELS = listed(text, 2**20, 1)
COLOURS = either(number, listed(number, 16, 1))
SIDE = whole(1, 2**14)  # pixels
SETTINGS = {
    "labels": LABELS,
    "problem": one_of("single_label", "multi_label", "regression"),
    "decoder_start": listed(ID, 1000, 1),
    "eos": listed(ID, 1000),
    "forced_bos": nullable(ID),
    "forced_eos": nullable(ID),
    "suppressed": listed(ID),
    "begin_suppressed": listed(ID),
    "max_length": whole(1, 2**24),
    "sample_rate": whole(1, 2**20),
    "hop_length": whole(1, 2**16),
    "max_frames": whole(1, 2**20),
    "stride": nullable(whole(1, 2**16)),
    "blank": ID,
    "timestamp_begin": nullable(ID),
    "no_timestamps": nullable(ID),
    "no_speech": nullable(ID),
    "languages": mapped(ID, 1000),
    "tasks": mapped(ID, 100),
    "image_size": SIDE,
    "short_side": SIDE,
    "channels": whole(1, 4),
    "frames": whole(1, 2**12),
    "image_mean": COLOURS,
    "image_std": COLOURS,
    "kind": name,
    "height": SIDE,
    "width": SIDE,
    "levels": whole(1, 2**16),
    "no_class": ID,
    "grid_rows": SIDE,
    "grid_columns": SIDE,
    "latent_size": whole(1, 2**20),
}
SPEECH = ("sample_rate", "hop_length", "max_frames")
ANSWERS = ("decoder_start", "eos", "forced_bos", "forced_eos", "suppressed", "max_length")
SPOKEN = ("begin_suppressed", "timestamp_begin", "no_timestamps", "no_speech", "languages", "tasks")
PICTURES = ("image_size", "short_side", "channels", "frames", "stride", "image_mean", "image_std")
REQUIRED = {
    "classify": ("labels", "problem"),
    "classify-image": ("labels", "problem"),
    "classify-video": ("labels", *PICTURES),
    "translate": ANSWERS,
    "transcribe": (
        *ANSWERS,
        *SPEECH,
        "begin_suppressed",
        "timestamp_begin",
        "no_timestamps",
        "no_speech",
        "languages",
        "tasks",
    ),
    "transcribe-ctc": (*SPEECH, "stride", "blank"),
    "generate-image": ("kind", "height", "width"),
}
OF_KIND = {"autoregressive": ("levels", "labels", "no_class"), "gan": ("grid_rows", "grid_columns", "latent_size")}


def check(task: dict[str, Any]) -> None:
    """Raises FormError unless the task's settings are there and of their form; a task of another name is any."""
    wanted = REQUIRED.get(task.get("name", ""), ())
    if task.get("name") == "generate-image":
        wanted = (*wanted, *OF_KIND.get(task.get("kind", ""), ()))
    for key in wanted:
        if key not in task:
            raise FormError(f"task lacks {key}")
    if task.get("name") == "transcribe-ctc" and task["stride"] is None:
        raise FormError("task.stride is null, where a whole number belongs")
    if "name" in task and task["name"] in REQUIRED:
        for key, form in SETTINGS.items():
            if key in task:
                form(task[key], f"task.{key}")

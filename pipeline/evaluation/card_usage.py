"""The section of a model card that says how to use a detector without the code of this project.

Only folders made for the hub have it (manage_detectors.py for-hub).
"""

from pipeline.detectors.detector import NUMBERS
from pipeline.detectors.detector_values import ONNX, TIMM, TRANSFORMERS

HEADING = "## Without the code of this project"


def usage(description: dict) -> str:
    """The section for a detector.json, with lines of Python to copy; "" where it has none."""
    if "hub" not in description:
        return ""
    lines = {TIMM: _timm, TRANSFORMERS: _transformers, ONNX: _onnx}[description["hub"]["library"]]
    return f"""
{HEADING}

{_warning(description)}{_what_to_feed(description)}

{lines(description)}{_other_sizes(description)}"""


def _warning(description: dict) -> str:
    """That the head in model.safetensors is older than the calibration, where that is so."""
    made = description["hub"]
    if made["library"] == ONNX or made["temperature"] == description["calibration"]["temperature"]:
        return ""
    return (
        "**Calibrated again since it was written for others**: the lines below give the older\n"
        "fake_probability until `manage_detectors.py for-hub` has been run again.\n\n"
    )


def _what_to_feed(description: dict) -> str:
    face = description["face"]
    if face["mode"] == "none":
        return "Feed it whole pictures."
    return (
        "These lines find no faces. Feed them one face at a time, cut out as a square of "
        f"{face['margin']:g} times\nthe larger side of the face's box."
    )


def _other_sizes(description: dict) -> str:
    size, resize = description["input"]["size"], description["input"]["resize"]
    if resize != "area":
        return ""
    return f"""
A picture of {size} × {size} pixels gets the fake_probability that this project gives it. One of
another size is resized by another filter there (bilinear) than here (the average of the pixels that
are covered), which can move fake_probability by some hundredths.
"""


def _repository(description: dict) -> str:
    return description["hub"].get("repository", "OWNER/NAME")


def _timm(description: dict) -> str:
    name = _repository(description)
    return f"""timm and transformers load it. Softmax over its two classes gives fake_probability:

    import timm
    from PIL import Image

    network = timm.create_model("hf-hub:{name}", pretrained=True).eval()
    as_fed = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    face = as_fed(Image.open("face.png").convert("RGB"))
    print(network(face[None]).softmax(1)[0, 1].item())

From a folder on your disk: `local-dir:FOLDER` in the place of `hf-hub:{name}`. As a pipeline:

{_pipeline(name)}
"""


def _transformers(description: dict) -> str:
    return f"""transformers loads it. The score of its class `fake` is fake_probability:

{_pipeline(_repository(description))}
"""


def _pipeline(name: str) -> str:
    return f"""    from transformers import pipeline

    print(pipeline("image-classification", model="{name}")("face.png"))"""


def _onnx(description: dict) -> str:
    fed = description["input"]
    resample = {"area": "BILINEAR", "nearest": "NEAREST"}[fed["resize"]]
    order = ".transpose(0, 3, 1, 2)" if fed["layout"] == "NCHW" else ""
    beside = NUMBERS in description.get("files", ())
    needs = f"`{NUMBERS}` beside it" if beside else "no other file"
    return f"""Neither timm nor transformers has such a network, but whatever runs ONNX runs its
graph, which needs {needs}. With OpenVINO:

    import numpy
    import openvino
    from PIL import Image

    precise = {{"INFERENCE_PRECISION_HINT": "f32"}}
    network = openvino.Core().compile_model("model.onnx", "CPU", precise)
    face = Image.open("face.png").convert("RGB").resize(({fed["size"]},) * 2, Image.{resample})
    mean = {fed["mean"]}
    std = {fed["std"]}
    pixels = (numpy.asarray(face)[None] - mean) / std
    logit = network(pixels{order}.astype("float32"))[0].item()
    print(1 / (1 + numpy.exp(-logit / {description["calibration"]["temperature"]!r})))
"""

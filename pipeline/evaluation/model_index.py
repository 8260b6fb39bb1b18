"""The head of a model card: YAML that the Hugging Face hub reads, with the metrics as model-index.

See https://huggingface.co/docs/hub/model-cards.
"""

from huggingface_hub import EvalResult, ModelCardData

TASK = "image-classification"
TASK_NAME = "Telling real faces from deepfakes"
# Key in detector.json → the hub's identifier and the name that is shown.
METRICS = {
    "auc": ("roc_auc", "AUC"),
    "ap": ("average_precision", "average precision"),
    "accuracy": ("accuracy", "accuracy at the threshold"),
    "recall_fake": ("recall", "fakes found at the threshold"),
    "recall_real": ("specificity", "real faces not called fake at the threshold"),
}
# Name and split of the data; the hub puts results of one split together, whatever their names.
VALIDATION = ("validation pictures", "validation")
UNSEEN = ("kinds of fakes not seen in training", "test")


def card_head(description: dict) -> str:
    """The YAML block between two lines of three dashes, with a newline at its end.

    `description` is the content of a detector.json. The code of this project is under Apache-2.0,
    but weights are bound by the terms of the pictures, which the card's last section states.
    """
    data = ModelCardData(
        license="other",
        license_name="terms-of-the-training-data",
        library_name=description.get("hub", {}).get("library", "onnx"),
        pipeline_tag=TASK,
        tags=["deepfake-detection", "face", description["architecture"]],
        model_name=description["name"],
        eval_results=_results(description["metrics"]),
    )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---\n"


def _results(metrics: dict) -> list[EvalResult]:
    results = [
        _result(VALIDATION, *METRICS[key], metrics[key]) for key in METRICS if key in metrics
    ]
    if "unseen_auc" in metrics:
        results.append(_result(UNSEEN, *METRICS["auc"], metrics["unseen_auc"]))
    return results


def _result(data: tuple[str, str], identifier: str, name: str, value: float) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        task_name=TASK_NAME,
        dataset_type="imagefolder",
        dataset_name=data[0],
        dataset_split=data[1],
        metric_type=identifier,
        metric_name=name,
        metric_value=round(value, 4),
    )

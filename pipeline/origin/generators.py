"""How generators of pictures sign what they make: names in fields for software, and settings."""

import re

# The keywords of PNG's text chunks in which generators write; see `generator_of_text`.
TEXT_KEYWORDS = frozenset(
    ("parameters", "prompt", "workflow", "Dream", "sd-metadata", "invokeai_metadata", "Software")
)

# Whole names only, and none that is an ordinary word as well ("Flux", "Imagen", "Designer").
_NAMES = re.compile(
    r"(?<![a-z])(NovelAI|Stable Diffusion|stable-diffusion-webui|AUTOMATIC1111|ComfyUI|InvokeAI"
    r"|Fooocus|SwarmUI|StableSwarmUI|SD\.Next|Draw Things|Midjourney|DALL[-·∙ ]?E|OpenAI|ChatGPT"
    r"|gpt-image|GPT-4o|Adobe Firefly|Google AI|Google Generative AI|Leonardo\.Ai|Ideogram"
    r"|Recraft|FLUX\.[12]|Bing Image Creator|NightCafe|Civitai|StyleGAN[23]?)(?![a-z])",
    re.IGNORECASE,
)
# The settings that AUTOMATIC1111's web UI writes behind the prompt, and many others after it.
_STEPS, _SAMPLER, _SEED = re.compile(r"\bSteps: \d"), "Sampler: ", re.compile(r"\bSeed: \d")
_INVOKE = re.compile(r"(^|\s)-[sSWHCA] ?[\w.]+")  # of its command line
_JSON_SETTINGS = ('"sampler"', '"seed"', '"steps"')  # Fooocus, Draw Things and others
_WEB_UI = "settings of Stable Diffusion"


def generator_named_in(software: str) -> str:
    """The name of a generator in a field that names software, as it stands there; or ""."""
    found = _NAMES.search(software)
    return found[0] if found else ""


def generator_of_settings(text: str) -> str:
    """What wrote these settings, if they are in a form that generators write; or ""."""
    if _STEPS.search(text) and _SAMPLER in text and _SEED.search(text):
        return _WEB_UI
    if not text.lstrip().startswith("{"):
        return ""
    if '"sui_image_params"' in text:
        return "SwarmUI"
    if '"class_type"' in text:
        return "ComfyUI"
    return _WEB_UI if all(name in text for name in _JSON_SETTINGS) else ""


def generator_of_text(keyword: str, text: str) -> str:
    """What generator wrote a text chunk of a PNG; "" if none did.

    A keyword alone is not enough: other programs may write prompts and workflows of their own.
    """
    is_object = text.lstrip().startswith("{")
    if keyword == "Software":
        return generator_named_in(text)
    if keyword in ("parameters", "prompt"):
        return generator_of_settings(text)
    if keyword == "workflow":
        return "ComfyUI" if is_object and '"nodes"' in text and '"links"' in text else ""
    if keyword == "Dream":
        return "InvokeAI" if len(_INVOKE.findall(text[-1000:])) > 1 else ""
    return "InvokeAI" if is_object and '"' in text else ""  # sd-metadata, invokeai_metadata

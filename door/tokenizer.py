"""A tokenizer folder for clients that have no network: what a model's own file holds."""

from __future__ import annotations

import json
from pathlib import Path

from policy.errors import ConfigError
from realrun.chat import template_of_gguf
from realrun.config import from_gguf as config_of
from realrun.tokenizer import from_gguf
from traces.atomic import whole
from traces.strict import shown_path


def write_folder(gguf: Path, out: Path) -> list[Path]:
    """tokenizer.json, tokenizer_config.json and a small config.json of a GGUF file. Raises ConfigError."""
    from gguf import GGUFReader  # noqa: PLC0415

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {shown_path(out)}: is no folder")
    reader = GGUFReader(gguf)
    config = config_of(reader)
    tokenizer = from_gguf(reader, config.vocab)
    template, special = template_of_gguf(reader)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out / "tokenizer.json")
    says = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_model_len,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
        **special,
    }
    sizes = {
        "model_type": "llama",
        "vocab_size": config.vocab,
        "max_position_embeddings": config.max_model_len,
    }
    for name, data in (("tokenizer_config.json", says), ("config.json", sizes)):
        with whole(out / name) as part:
            part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return [out / name for name in ("tokenizer.json", "tokenizer_config.json", "config.json")]

"""People's models: their own chat template, special tokens and generation_config, from a folder."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")
tokenizers = pytest.importorskip("tokenizers", reason="the executor needs tokenizers")
for _needed in ("safetensors", "gguf", "jinja2"):
    pytest.importorskip(_needed, reason=f"the executor needs {_needed}")

from dataclasses import replace

from policy.errors import ConfigError, InputError
from realrun.chat import ChatFormat, from_folder
from realrun.config import Generation, generation_of
from realrun.model import load_model
from realrun.prompts import TextPrompts
from realrun.sampling import SamplingParams
from realrun.serve import Options, _sampling, prepare, serve
from tests.helpers.real import ROOM, scenario, write_workload
from tests.realrun.test_weights import QWEN2, QWEN3, TINY, hf_tensors, write_folder
from traces.workload import Turn

#: As the makers of each family lay a conversation out, in our own words.
LLAMA3 = """\
{{ bos_token }}{% for message in messages %}
<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message['content'] | trim }}<|eot_id|>{% endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
MISTRAL = """\
{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}
{{ '[INST] ' + message.content + ' [/INST]' }}{% elif message.role == 'assistant' %}
{{ ' ' + message.content + eos_token }}{% else %}{{ raise_exception('no ' + message.role) }}{% endif %}
{% endfor %}"""
TEMPLATES = {"llama": LLAMA3, "qwen": CHATML, "mistral": MISTRAL}
SPECIAL = [
    "<s>", "</s>", "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>",
    "<|end_header_id|>", "[INST]", "[/INST]",
]  # fmt: skip


def write_tokenizer(path: Path) -> None:
    """Every byte is a token, and so is every special one; a text gets a begin token in front."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:200]
    vocab = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    backend.save(str(path))


def model_folder(folder: Path, family: str, **files: Any) -> Path:
    """A tiny model with random weights and everything that comes beside them."""
    config = {"llama": TINY, "qwen": QWEN3, "qwen2": QWEN2, "mistral": TINY}[family]
    write_folder(folder, replace(config, max_model_len=512), hf_tensors(config))
    write_tokenizer(folder / "tokenizer.json")
    values = json.loads((folder / "config.json").read_text())
    kind = {"mistral": "mistral"}.get(family, values["model_type"])
    (folder / "config.json").write_text(json.dumps({**values, "model_type": kind}))
    beside = {
        "tokenizer_config.json": {
            "bos_token": "<s>",
            "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": TEMPLATES.get(family, CHATML),
        },
        "generation_config.json": {"eos_token_id": [1, 2, 4]},
        **files,
    }
    for name, content in beside.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def chat_of(template: str) -> ChatFormat:
    return ChatFormat(template, {"bos_token": "<s>", "eos_token": "</s>"}, "here")


@pytest.mark.parametrize(
    ("family", "first", "next_"),
    [
        (
            "llama",
            "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nMore<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "qwen",
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n",
            "<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("mistral", "<s>[INST] Hi [/INST]", "</s>[INST] More [/INST]"),
    ],
)
def test_a_conversation_is_laid_out_by_the_models_own_template(
    family: str, first: str, next_: str
) -> None:
    chat = chat_of(TEMPLATES[family])
    assert chat.opening("Hi") == first
    assert chat.following(["Hi"], "More") == next_
    assert chat.following(["Hi", "And"], "More") == next_


def tokens_of(folder: Path) -> tuple[TextPrompts, Any]:
    model = load_model(str(folder), torch.float32, "cpu")
    assert model.tokenizer is not None and model.chat is not None
    eos = frozenset(model.config.eos_ids)
    texts = {"a/1": "Hi", "a/2": "More"}
    return TextPrompts(texts, model.tokenizer, model.chat, eos), model.tokenizer


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(("family", "closing"), [("llama", 2), ("qwen", 4), ("mistral", 1)])
def test_a_next_turn_only_appends_and_closes_a_reply_once(
    tmp_path: Path, family: str, closing: int, ended: bool
) -> None:
    prompts, tokenizer = tokens_of(model_folder(tmp_path, family))
    first = prompts.prompt(Turn("a/1", "a", 1, 1, 1), [])
    assert first.count(0) == (family != "qwen")  # the template's begin token, and no second one
    reply = [50, 60, *([closing] if ended else [])]
    whole = prompts.prompt(Turn("a/2", "a", 2, 1, 1), first + reply)
    assert whole[: len(first)] == first
    assert whole[len(first) : len(first) + 3] == [50, 60, closing]
    assert whole.count(closing) == first.count(closing) + 1 + (family != "mistral")
    assert "More" in tokenizer.decode(whole)


def test_a_template_may_lie_in_a_file_of_its_own_or_be_one_of_several(tmp_path: Path) -> None:
    several = [{"name": "tool", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    chat = from_folder(tmp_path)
    assert chat is not None and chat.opening("Hi") == "yes"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    chat = from_folder(tmp_path)
    assert chat is not None and chat.opening("Hi") == "Hi!"


def test_blocks_for_training_and_loop_controls_are_let_through() -> None:
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content | tojson }}{% endgeneration %}{% endfor %}"
    )
    assert chat_of(template).opening('a"b é') == '"a\\"b é"'


def test_a_template_that_asks_for_the_date_gets_its_own_default() -> None:
    template = "{{ strftime_now('%d') if strftime_now is defined else '26 Jul 2024' }}"
    assert chat_of(template).opening("Hi") == "26 Jul 2024"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for %}", "Expected"),
        ("{{ raise_exception('only system') }}", "only system"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{{ nothing.here }}", "undefined"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "[Rr]ange"),
    ],
)
def test_a_template_that_fails_or_reaches_out_is_one_error(template: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"^here: .*({problem})") as caught:
        chat_of(template).opening("Hi")
    assert "\n" not in str(caught.value)


def test_a_template_that_leaves_replies_out_is_refused_at_the_second_turn() -> None:
    with pytest.raises(ConfigError, match="does not repeat what was answered"):
        chat_of("{{ messages[-1].content }}").following(["Hi"], "More")


def talk(folder: Path) -> Path:
    path = folder / "talk.jsonl"
    rows = [{"session": "a", "text": "Hi"}, {"session": "a", "text": "And now?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("family", ["llama", "qwen", "qwen2", "mistral"])
def test_a_folder_is_served_as_its_makers_meant_it(tmp_path: Path, family: str) -> None:
    """Prompts in its own format, replies sampled and ended as generation_config says."""
    generation = {
        "eos_token_id": [1, 2, 4],
        "do_sample": True,
        "temperature": 1.5,
        "max_new_tokens": 7,
        "repetition_penalty": 1.1,
    }
    folder = model_folder(tmp_path / "m", family, **{"generation_config.json": generation})
    serving = scenario(
        write_workload(tmp_path / "w.jsonl"),
        pool={**ROOM, "device_blocks": 400},
        limits={"max_model_len": 500},
    )
    options = Options(model=str(folder), conversation=talk(tmp_path))
    recording = serve(serving, options, out=tmp_path / "run")
    lines = (tmp_path / "run/replies.jsonl").read_text().splitlines()
    replies = [json.loads(line)["tokens"] for line in lines]
    assert len(replies) == 2
    assert all(len(reply) == 7 or reply[-1] in (1, 2, 4) for reply in replies)
    warnings = recording.summary["warnings"]
    assert [said for said in warnings if not said.startswith("assumed: ")] == [
        "generation_config.json: repetition_penalty 1.1 is not applied"
    ]
    greedy = replace(options, sampling=SamplingParams())
    serve(serving, greedy, out=tmp_path / "greedy")
    other = (tmp_path / "greedy/replies.jsonl").read_text().splitlines()
    assert [json.loads(line)["tokens"] for line in other] != replies


def test_lengths_that_rule_are_greedy_whatever_the_folder_says(tmp_path: Path) -> None:
    generation = {"do_sample": True, "top_k": 5}
    folder = model_folder(tmp_path / "m", "llama", **{"generation_config.json": generation})
    serving = scenario(write_workload(tmp_path / "w.jsonl"), pool=ROOM)
    machine = prepare(serving, Options(model=str(folder)))
    assert machine.model.generation == Generation(1.0, 1.0, 5)
    assert _sampling(machine).is_greedy
    machine.close()


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"tokenizer_config.json": {"bos_token": "<s>"}}, "has no chat template"),
        ({"tokenizer_config.json": None}, "has no chat template"),
        ({"tokenizer_config.json": {"chat_template": 3}}, "chat_template: 3 is not text"),
        ({"generation_config.json": {"do_sample": True, "top_p": 1.5}}, "top_p: 1.5 is above 1"),
        ({"generation_config.json": {"do_sample": "yes"}}, "do_sample"),
        ({"generation_config.json": {"max_new_tokens": 0}}, "max_new_tokens"),
    ],
)
def test_what_a_folder_lacks_or_gets_wrong_is_named(
    tmp_path: Path, files: dict[str, Any], problem: str
) -> None:
    folder = model_folder(tmp_path / "m", "llama", **files)
    serving = scenario(write_workload(tmp_path / "w.jsonl"), pool=ROOM)
    with pytest.raises(ConfigError, match=problem):
        prepare(serving, Options(model=str(folder), conversation=talk(tmp_path)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e39])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, bad: float) -> None:
    tensors = hf_tensors(TINY)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name].double()
    tensors[name][3, 5] = bad  # 1e39 is none in fp32
    write_folder(tmp_path, TINY, tensors)
    with pytest.raises(InputError, match=rf"{name}: 1 of 8192 values are NaN or infinite"):
        load_model(str(tmp_path), torch.float32, "cpu")


def test_a_folder_without_generation_config_is_greedy(tmp_path: Path) -> None:
    assert generation_of(tmp_path) == Generation()

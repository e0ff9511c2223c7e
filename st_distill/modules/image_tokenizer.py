"""The tokenizer and the chat template of the image module: a place for images, and every text as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# The chat template writes an escape character, which no tokenizer's vocabulary holds, in three ways: before "<image>" as
# the place of an image, before "t" as itself, and before "n" as nothing. The tokenizer's normalizer reads the last two
# back, so that every text, whatever is in it, reaches the tokenizer's own rules exactly as it was written.
IMAGE, LITERAL, NOTHING = "<image>", "t", "n"
_TEMPLATE = """\
{%- set escape = '$escape' -%}
{%- set ns = namespace(images='', text='') -%}
{%- for message in messages -%}
    {%- if message.role in ['query', 'document'] -%}
        {{- raise_exception('this model takes no pairs: pass {"text": ..., "image": ...} for an image with text') -}}
    {%- endif -%}
    {%- if message.content is string -%}
        {%- set ns.text = ns.text + message.content -%}
    {%- else -%}
        {%- for item in message.content -%}
            {%- if item.type == 'image' -%}
                {%- set ns.images = ns.images + escape + '$image' -%}
            {%- elif item.type == 'text' -%}
                {%- set ns.text = ns.text + item.text -%}
            {%- else -%}
                {{- raise_exception('this model takes text and images, not ' ~ item.type) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{%- set text = ns.text | replace(escape, escape + '$literal') -%}
{%- if bos_token and text.startswith(bos_token) -%}
    {#- Or the processor would take the text for a finished prompt, and add no special tokens to the whole batch. -#}
    {%- set text = escape + '$nothing' + text -%}
{%- endif -%}
{{- $order -}}
"""

_UNUSED = "[unused{}]"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def image_tokenizer(
    tokenizer: Any, max_length: int | None, embeddings: int
) -> tuple[PreTrainedTokenizerBase, str, int]:
    """A tokenizer with the image token that gives every text, as the chat template writes it, its former tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer) or getattr(tokenizer, "split_special_tokens", False):
        raise ValueError(
            "The 'text' of from_encoders must have a tokenizer of the tokenizers library that recognises special tokens. "
            f"Got {type(tokenizer).__name__}."
        )
    state = json.loads(backend.to_str())
    # Limits of an earlier call: they would be taken for the tokenizer's own on loading.
    state["truncation"] = state["padding"] = None
    vocabulary = backend.get_vocab(with_added_tokens=True)
    escape = _escape(vocabulary)
    image_token = escape + IMAGE
    first_free = max(vocabulary.values()) + 1
    if first_free >= embeddings and (name := _unused_entry(state, backend)) is not None:
        entries = state["model"]["vocab"]
        entries[image_token] = entries.pop(name)
    new = Tokenizer.from_str(json.dumps(state))
    own = [] if new.normalizer is None else [new.normalizer]
    new.normalizer = normalizers.Sequence(
        [normalizers.Replace(escape + NOTHING, ""), normalizers.Replace(escape + LITERAL, escape), *own]
    )
    new.add_special_tokens([AddedToken(image_token, special=True, normalized=False)])

    settings = {
        key: getattr(tokenizer, key)
        for key in ("padding_side", "truncation_side", "pad_token_type_id", "model_input_names", "add_prefix_space")
        if getattr(tokenizer, key, None) is not None
    }
    specials = {
        key: str(getattr(tokenizer, key)) for key in _SPECIAL_TOKENS if getattr(tokenizer, key, None) is not None
    }
    if max_length is not None:
        settings["model_max_length"] = max_length
    # PreTrainedTokenizerFast is the class that reads its rules from tokenizer.json, where a class such as BertTokenizer
    # makes its own again on loading. A processor takes a tokenizer's max_length for every call's, hence none.
    result = PreTrainedTokenizerFast(tokenizer_object=new, max_length=None, **specials, **settings)
    return result, image_token, new.get_vocab()[image_token]


def _escape(vocabulary: Mapping[str, int]) -> str:
    """A private-use character in no token."""
    used = set().union(*vocabulary)
    for code in range(0xE000, 0xF900):
        if chr(code) not in used:
            return chr(code)
    raise ValueError("The 'text' of from_encoders has a tokenizer whose vocabulary takes every private-use character.")


def _unused_entry(state: Mapping[str, Any], backend: Tokenizer) -> str | None:
    """An ``[unusedN]`` entry of a WordPiece vocabulary, which BERT-like models keep free and no text reaches."""
    if state["model"].get("type") != "WordPiece":
        return None
    added = {token["content"] for token in state["added_tokens"]}
    entries = state["model"]["vocab"]
    for number in range(len(entries), -1, -1):
        name = _UNUSED.format(number)
        if name in entries and name not in added and entries[name] not in backend.encode(name).ids:
            return name
    return None


def chat_template(escape: str, truncation_side: str) -> str:
    fields = {
        # Jinja reads the escape sequence; the file stays readable.
        "$escape": f"\\u{ord(escape):04x}",
        "$image": IMAGE,
        "$literal": LITERAL,
        "$nothing": NOTHING,
        "$order": "text + ns.images" if truncation_side == "left" else "ns.images + text",
    }
    template = _TEMPLATE
    for name, value in fields.items():
        template = template.replace(name, value)
    return template


def forget_length(tokenizer: PreTrainedTokenizerBase) -> None:
    """Drops the last call's limits, which the tokenizers library would save as the tokenizer's own."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()

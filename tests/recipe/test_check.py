"""Every mistake at once, each in its line."""
# ruff: noqa: E501 - a row of a table is one case

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.errors as errors
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoTokenizer, RobertaConfig

from st_distill.errors import RecipeError
from st_distill.recipe import models, run, run_rules
from st_distill.recipe.check import check, format_problems
from st_distill.recipe.data import load_texts
from st_distill.recipe.load import load_recipe, presets
from st_distill.recipe.schema import Evaluation, Projection, Recipe, Stage, Student, TeacherSpec, Texts
from st_distill.recipe.teachers import make_teacher
from st_distill.teacher import Teacher

#: The package has a function of the same name.

BASE = """\
output: out/model
student:
  model: BERT
  layers: [0, 1, 3]
  max_seq_length: 32
teachers:
  - name: big
    model: BERT
texts:
  - path: texts.parquet
    columns: [text]
images:
  path: pictures.jsonl
  vision: SIGLIP
  tokens: 4
projection:
  dims: [32, 16]
stages:
  - train: projection
    steps: 10
    batch: 8
  - train: {last_layers: 2}
    epochs: 1
    arguments:
      weight_decay: 0.01
    also:
      - loss: MultipleNegativesRankingLoss
        texts: {path: pairs.csv, columns: [sentence1, sentence2]}
  - train: vision
    steps: 5
evaluation:
  texts: texts.parquet
  similarity: pairs.csv
  retrieval: {path: pairs.csv, columns: [sentence1, sentence2]}
  images: pictures.jsonl
diagnosis: false # the same few texts serve everywhere here
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    table = {"text": ["a", "b"], "other": ["c", "d"], "number": [1, 2], "vector": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}
    pq.write_table(pa.table(table), "texts.parquet")
    Path("pairs.csv").write_text("sentence1,sentence2,score\na cat,a dog,2.5\na fish,a bird,1\n")
    Image.new("RGB", (4, 4)).save("a.png")
    Path("pictures.jsonl").write_text(json.dumps({"image": "a.png", "caption": "black", "size": 4}) + "\n")
    return tmp_path


@pytest.fixture
def problems_of(folder, tiny_bert, tiny_siglip):
    def problems(text: str):
        Path("recipe.yaml").write_text(text.replace("BERT", tiny_bert).replace("SIGLIP", tiny_siglip))
        return check("recipe.yaml")

    return problems


def test_a_good_recipe_has_no_problems(problems_of):
    assert problems_of(BASE) == []


MISTAKES = {
    "initials": ("    batch: 8", "    lr: 8", 21, "stages[0].lr: unknown field; did you mean 'learning_rate'?"),
    "unknown field": ("    batch: 8", "    btach: 8", 21, "stages[0].btach: unknown field; did you mean 'batch'?"),
    "another library's name": ("    batch: 8", "    batch_size: 8", 21, "stages[0].batch_size: unknown field; did you mean 'batch'?"),
    "unknown top field": ("output:", "outptu:", 1, "outptu: unknown field; did you mean 'output'?"),
    "missing field": ("output: out/model\n", "", 1, "'output' is missing: folder of the finished model"),
    "quoted number": ("steps: 10", 'steps: "10"', 20, "stages[0].steps: expected a whole number, got the text '10'; write"),
    "quoted float": ("weight_decay: 0.01", "weight_decay: '1e-4'", 25, "expected a number, got the text '1e-4'; write it"),
    "bool for number": ("batch: 8", "batch: true", 21, "stages[0].batch: expected a whole number, got true"),
    "fraction of a step": ("steps: 10", "steps: 1.5", 20, "expected a whole number, got the number 1.5"),
    "negative steps": ("steps: 10", "steps: -3", 20, "stages[0].steps: must be at least 1, got -3"),
    "batch 0": ("batch: 8", "batch: 0", 21, "stages[0].batch: must be at least 1, got 0"),
    "batch 1": ("batch: 8", "batch: 1\n    losses: {similarity: 1, triplet: 1}", 21, "similarity and triplet compare the rows of a batch, so it must have at least 2"),
    "learning rate": ("batch: 8", "learning_rate: 0", 21, "learning_rate: must be above 0, got 0"),
    "no device": ("    model: BERT\ntexts", "    model: BERT\n    device: gpu\ntexts", 9, "teachers[0].device: must be a device as torch names it"),
    "empty device": ("    model: BERT\ntexts", "    model: BERT\n    device: meta\ntexts", 9, "teachers[0].device: must be a device that computes"),
    "negative weight": ("batch: 8", "losses: {cosine: -1}", 21, "losses.cosine: a weight must be at least 0, got -1"),
    "unknown loss": ("batch: 8", "losses: {cosin: 1}", 21, "losses.cosin: unknown loss; did you mean 'cosine'?"),
    "no loss": ("batch: 8", "losses: {cosine: 0}", 21, "stages[0].losses: the stage has nothing to learn from"),
    "negative margin": ("batch: 8", "margin: -0.1", 21, "stages[0].margin: must be at least 0, got -0.1"),
    "NaN": ("batch: 8", "margin: .nan", 21, "stages[0].margin: expected a number, got the number nan"),
    "infinity": ("batch: 8", "learning_rate: .inf", 21, "stages[0].learning_rate: expected a number, got the number inf; it must be finite"),
    "empty dims": ("dims: [32, 16]", "dims: []", 17, "projection.dims: must not be empty"),
    "dims 0": ("dims: [32, 16]", "dims: [32, 0]", 17, "projection.dims[1]: must be at least 1, got 0"),
    "dims twice": ("dims: [32, 16]", "dims: [16, 16]", 17, "projection.dims[1]: is there twice: 16"),
    "dims no list": ("dims: [32, 16]", "dims: 32", 17, "expected a list of whole numbers, got the number 32; write [32]"),
    "dims above the teacher": ("dims: [32, 16]", "dims: [48, 16]", 17, "48 is above the teachers' 32 dimensions: a ridge"),
    "rotation above": ("dims: [32, 16]", "dims: [48]\n  start: random", 17, "a rotation cannot reach it"),
    "cosine above": ("dims: [32, 16]", "dims: [48]\n  start: random\n  rotation: none", 17, "the cosine term has nothing to compare it with"),
    "identity above": ("dims: [32, 16]", "dims: [40]\n  start: identity", 17, "no wider than the student's 32 dimensions"),
    "no heads, turned": ("dims: [32, 16]", "dims: [32]\n  start: identity\n  heads: none", 16, "heads: none has no map that could turn; set rotation: none"),
    "no heads": ("dims: [32, 16]", "dims: [32]\n  heads: none", 18, "needs a static embedding as the student; leave heads out"),
    "no heads at random": ("dims: [32, 16]", "dims: [32]\n  start: random\n  heads: none", 19, "no map that could start at random"),
    "no heads to train": ("dims: [32, 16]", "dims: [32]\n  start: identity\n  rotation: none\n  heads: none", 20, "leaves nothing for a stage with train: projection"),
    "no heads, cut": ("dims: [32, 16]", "dims: [16]\n  start: identity\n  rotation: none\n  heads: none", 20, "needs the student's 32 dimensions as the largest of dims, got 16"),
    "no heads, teacher's": ("dims: [32, 16]", "dims: [32]\n  start: identity\n  rotation: none\n  teacher_head: true\n  heads: none", 21, "'none' has no teacher_head either"),
    "unknown word": ("dims: [32, 16]", "dims: [32]\n  heads: nestd", 18, "unknown value 'nestd'; did you mean 'nested'?"),
    "stage dims": ("batch: 8", "dims: [32, 8]", 21, "stages[0].dims[1]: 8 is not among the projection's dims (32, 16)"),
    "stage dims word": ("batch: 8", "dims: ful", 21, "expected 'full' or a list of whole numbers, got the text 'ful'; did"),
    "cosine dims": ("batch: 8", "cosine_dims: [8]", 21, "cosine_dims[0]: 8 is not among the projection's dims"),
    "steps and epochs": ("steps: 10", "steps: 10\n    epochs: 2", 21, "steps and epochs are both given"),
    "no duration": ("    steps: 10\n", "", 19, "stages[0]: says not how long to train; give steps or epochs"),
    "both ways": ("weight_decay: 0.01", "num_train_epochs: 1", 25, "means the same as 'epochs'; remove one of them"),
    "unknown argument": ("weight_decay: 0.01", "wieght_decay: 1", 25, "unknown field; did you mean 'weight_decay'?"),
    "output_dir": ("weight_decay: 0.01", "output_dir: x", 25, "checkpoints go to the recipe's work folder"),
    "argument's word": ("weight_decay: 0.01", "lr_scheduler_type: cosin", 25, "unknown value 'cosin'; did you mean 'cosine'?"),
    "argument's range": ("weight_decay: 0.01", "gradient_accumulation_steps: 0", 25, "must be above 0, got 0"),
    "argument's own check": ("weight_decay: 0.01", "dataloader_prefetch_factor: 2", 25, "dataloader_prefetch_factor can only be"),
    "argument's choice": ("weight_decay: 0.01", "log_level: wraning", 25, "log_level: cannot be 'wraning'; did you mean 'warning'?"),
    "argument's backend": ("weight_decay: 0.01", "ddp_backend: nope", 25, "ddp_backend: cannot be 'nope'; it may be nccl, gloo,"),
    "compiler": ("weight_decay: 0.01", "torch_compile_backend: inductr", 25, "torch_compile_backend: unknown value 'inductr'; did you mean 'inductor'?"),
    "compiler's mode": ("weight_decay: 0.01", "torch_compile_mode: nope", 25, "torch_compile_mode: Unrecognized mode=nope, should be one of"),
    "optim_args": ("weight_decay: 0.01", "optim_args: a=b=c", 25, "optim_args: must be name=value, with a comma before the next one, got 'a=b=c'"),
    "optim_args' value": ("weight_decay: 0.01", "{optim: sgd, optim_args: momentum=x}", 25, "optim_args: could not convert string to float: 'x'"),
    "optimizer's own check": ("weight_decay: 0.01", "{optim: sgd, optim_args: momentum=-1}", 25, "optim_args: Invalid momentum value"),
    "optimizer not installed": ("weight_decay: 0.01", "{optim: adamw_anyprecision, optim_args: use_kahan_summation=true}", 25, "Please install https://github.com/pytorch/torchdistx"),
    "schedule without its kwargs": ("weight_decay: 0.01", "lr_scheduler_type: warmup_stable_decay", 25, "lr_scheduler_type: get_wsd_schedule() missing 1 required positional argument: 'num_decay_steps'"),
    "schedule's kwargs": ("weight_decay: 0.01", "lr_scheduler_kwargs: {nope: 1}", 25, "lr_scheduler_kwargs: get_linear_schedule_with_warmup() got an unexpected keyword argument 'nope'"),
    "schedule's floor": ("weight_decay: 0.01", "lr_scheduler_type: cosine_with_min_lr", 25, "lr_scheduler_type: One of min_lr or min_lr_rate should be set through the `lr_scheduler_kwargs`"),
    "noise": ("weight_decay: 0.01", "neftune_noise_alpha: 5", 25, "neftune_noise_alpha: the trainer of sentence-transformers cannot add noise"),
    "best of nothing": ("weight_decay: 0.01", "save_strategy: best", 25, "save_strategy: best needs metric_for_best_model and eval_strategy"),
    "best without evaluation": ("weight_decay: 0.01", "load_best_model_at_end: true", 25, "set eval_strategy: steps or epoch"),
    "best of another name": ("weight_decay: 0.01", "{eval_strategy: epoch, metric_for_best_model: eval_spearmann_32}", 25, "metric_for_best_model: 'eval_spearmann_32' is no metric of the evaluation during training; did you mean 'spearman_32'?"),
    "best at a width that is not measured": ("weight_decay: 0.01", "{eval_strategy: epoch, metric_for_best_model: cka_16}", 25, "'cka_16' is no metric of the evaluation during training; did you mean 'cka_32'?"),
    "bf16 and fp16": ("weight_decay: 0.01", "{bf16: true, fp16: true, use_cpu: true}", 25, "only one of bf16 and fp16"),
    "deepspeed": ("weight_decay: 0.01", "deepspeed: zero2.json", 25, "there is no file 'zero2.json'"),
    "unsupported train": ("train: projection", "train: projektion", 19, "unknown value 'projektion'; did you mean 'projection'?"),
    "train nonsense": ("train: projection", "train: everything", 19, "it may be projection, all, vision, {last_layers: 3}, or"),
    "pattern alone": ("train: projection", "train: encoder.*", 19, "must stand in a list; write ['encoder.*']"),
    "bad pattern": ("train: projection", "train: ['enc(']", 19, "stages[0].train[0]: is not a regular expression"),
    "slow pattern": ("train: projection", r"train: ['(.|\w|[a-z])*[^a-z.0-9_]{2}']", 19, "must match a name at once"),
    "bad pattern for a rate": ("batch: 8", "arguments: {learning_rate_mapping: {'[': 0.001}}", 21, "stages[0].arguments.learning_rate_mapping.[: is not a regular expression"),
    "slow pattern for a rate": ("batch: 8", r"arguments: {learning_rate_mapping: {'(.|\w|[a-z])*[^a-z.0-9_]{2}': 0.001}}", 21, "must match a name at once"),
    "catastrophic pattern": ("batch: 8", "arguments: {learning_rate_mapping: {'^(([a-zA-Z0-9_.])+)+!$': 0.001}}", 21, "is found in no parameter's name, such as 'model.0.model.embeddings.word"),
    "rate below 0": ("batch: 8", "arguments: {learning_rate_mapping: {'.*': -1.0}}", 21, "learning_rate_mapping..*: must be above 0, got -1"),
    "rate 0": ("batch: 8", "arguments: {learning_rate_mapping: {'.*': 0}}", 21, "must be above 0, got 0"),
    "rate NaN": ("batch: 8", "arguments: {learning_rate_mapping: {'.*': .nan}}", 21, "expected a number, got the number nan"),
    "rates in text": ("batch: 8", "arguments: {learning_rate_mapping: '{\"a\": 1}'}", 21, "expected a mapping of patterns to rates, got text"),
    "last layers": ("{last_layers: 2}", "{last_layers: 4}", 22, "stages[1].train.last_layers: the student has 3 layers, got 4"),
    "last layers 0": ("{last_layers: 2}", "{last_layers: 0}", 22, "must be at least 1, got 0"),
    "last layer": ("{last_layers: 2}", "{last_layer: 2}", 22, "unknown field; did you mean 'last_layers'?"),
    "same stage": ("train: projection", "train: projection\n    name: vision", 30, "stages[2]: the name 'vision' is there twice"),
    "stage name": ("train: projection", "train: projection\n    name: a/b", 20, "names a folder"),
    "no stages": ("stages:\n", "stages: []\nx:\n", 18, "stages: must not be empty"),
    "vision first": ("train: projection", "train: vision\n    name: v", 23, "must stand before those that train vision"),
    "vision with also": ("    steps: 5", "    steps: 5\n    also: [{loss: CoSENTLoss, texts: pairs.csv}]", 31, "is frozen while"),
    "lora": ("batch: 8", "lora: {r: 8}", 21, "stages[0].lora: adapters belong to the text encoder's layers"),
    "lora's field": ("      weight_decay: 0.01", "      {}\n    lora: {rank: 8}", 26, "stages[1].lora.rank: unknown field"),
    "lora's range": ("      weight_decay: 0.01", "      {}\n    lora: {r: 0}", 26, "stages[1].lora.r: must be at least 1, got 0"),
    "library loss": ("MultipleNegativesRankingLoss", "MultipleNegativRankingLoss", 27, "did you mean 'MultipleNegativesRankingLoss'?"),
    "library no loss": ("MultipleNegativesRankingLoss", "GISTEmbedLoss", 27, "which a recipe cannot give"),
    "loss option": ("    also:", "    also:\n      - {loss: CoSENTLoss, texts: pairs.csv, options: {scal: 1}}", 27, "did you mean 'scale'?"),
    "loss needs": ("MultipleNegativesRankingLoss", "SoftmaxLoss", 27, "SoftmaxLoss needs options: {embedding_dimension: ...}"),
    "labels": ("columns: [sentence1, sentence2]}\n  - train", "columns: [sentence1, x]}\n  - train", 28, "there is no such column"),
    "layer": ("[0, 1, 3]", "[0, 1, 4]", 4, "student.layers[2]: the student has 4 layers, so a layer is 0 to 3, got 4"),
    "layer twice": ("[0, 1, 3]", "[0, 0, 3]", 4, "student.layers[1]: is there twice: 0"),
    "layer order": ("[0, 1, 3]", "[0, 3, 1]", 4, "must be in ascending order, got 1 after 3"),
    "too long": ("max_seq_length: 32", "max_seq_length: 65", 5, "student.max_seq_length: the student takes at most 64 tokens, got 65"),
    "too long for its export": ("max_seq_length: 32", "export_max_seq_length: 65", 5, "student.export_max_seq_length: the student takes at most 64 tokens, got 65"),
    "no model": ("  model: BERT\n  layers", "  model: ./nothing\n  layers", 3, "student.model: there is no folder './nothing'"),
    "teacher twice": ("texts:\n  - path", "  - {name: big, model: BERT}\ntexts:\n  - path", 9, "the name 'big' is there twice"),
    "teacher of nothing": ("    model: BERT\n", "", 7, "teachers[0]: one of model, vectors or teacher must be given"),
    "two teachers in one": ("    model: BERT\n", "    model: BERT\n    vectors: x.npy\n", 9, "only one of model and vectors"),
    "teacher cut": ("    model: BERT\n", "    model: BERT\n    truncate_dim: 64\n", 9, "the teacher has 32 dimensions, got 64"),
    "teacher's column": ("    model: BERT\n", "    model: BERT\n    column: x\n", 9, "means nothing for a model; remove it"),
    "teacher's weight": ("    model: BERT\n", "    model: BERT\n    weight: 0\n", 9, "must be above 0, got 0"),
    "no vectors": ("    model: BERT\n", "    vectors: x.npy\n", 8, "There is no file or folder 'x.npy'"),
    "vectors' column": ("    model: BERT\n", "    vectors: texts.parquet\n    column: vectr\n", 9, "did you mean 'vector'?"),
    "vectors' prompt": ("    model: BERT\n", "    vectors: texts.parquet\n    prompts: {a: b}\n", 9, "nothing for vectors that exist"),
    "no file": ("- path: texts.parquet", "- path: text.parquet", 10, "'text.parquet'; did you mean 'texts.parquet'?"),
    "no format": ("- path: texts.parquet", "- path: a.png", 10, "a.png must be one of .parquet, .jsonl"),
    "no column": ("columns: [text]", "columns: [txet]", 11, "texts[0].columns[0]: there is no such column; did you mean 'text'?"),
    "number column": ("columns: [text]", "columns: [number]", 11, "this column holds no texts"),
    "column twice": ("columns: [text]", "columns: [text, text]", 11, "is there twice: 'text'"),
    "role": ("columns: [text]", "roles: {txet: query}", 11, "texts[0].roles.txet: there is no such column; did you mean 'text'?"),
    "prompt": ("columns: [text]", "columns: [text]\n    prompts: {other: x}", 12, "there is no such column"),
    "limit": ("columns: [text]", "limit: 0", 11, "texts[0].limit: must be at least 1, got 0"),
    "path and dataset": ("columns: [text]", "dataset: x", 11, "only one of path and dataset can be given"),
    "config of a file": ("columns: [text]", "config: en", 11, "means nothing for what is not a dataset of the hub"),
    "no texts": ("texts:\n  - path: texts.parquet\n    columns: [text]\n", "texts: []\n", 9, "needs texts to learn on"),
    "no vision": ("  vision: SIGLIP\n", "", 12, "'vision' is missing: name a vision encoder"),
    "vision is text": ("vision: SIGLIP", "vision: BERT", 14, "is no vision encoder; SigLIP"),
    "vision type": ("vision: SIGLIP", "vision: {model_type: siglip_vison_model}", 14, "did you mean 'siglip_vision_model'?"),
    "vision field": ("vision: SIGLIP", "vision: {model_type: vit, hiden_size: 8}", 14, "did you mean 'hidden_size'?"),
    "vision value": ("vision: SIGLIP", "vision: {model_type: vit, hidden_size: big}", 14, "images.vision.hidden_size"),
    "vision heads": ("vision: SIGLIP", "vision: {model_type: vit, hidden_size: 770}", 14, "a multiple of num_attention_heads"),
    "visual tokens": ("vision: SIGLIP\n  tokens: 4", "vision: {model_type: vit}\n  tokens: 5", 15, "14 x 14 patches give 1, 4, 49, 196"),
    "pattern of nothing": ("train: projection", "train: [nomatch]", 19, "'nomatch' is found in no parameter's name, such as '0.model.embeddings.word_embeddings.weight'"),
    "no such layer": ("train: {last_layers: 2}", "train: all\n    lora: {r: 4, target_modules: [queri]}", 23, "the encoder has no 'queri'; did you mean 'query'?"),
    "two orders": ("steps: 10", "steps: 10\n    window_shards: 4\n    group_by_length: true", 21, "orders the batches by the store, which leaves no room for 'group_by_length'"),
    "no flash attention": ("max_seq_length: 32", "attn_implementation: flash_attention_2", 5, "a package that is not there: pip install flash-attn"),
    "unknown attention": ("max_seq_length: 32", "attn_implementation: flash", 5, "unknown value 'flash'"),
    "too many tokens": ("tokens: 4", "tokens: 64", 15, "must be below the student's max_seq_length of 32, got 64"),
    "on_error": ("tokens: 4", "on_error: ignore", 15, "unknown value 'ignore'; it may be stop or skip"),
    "no image column": ("tokens: 4", "image: picture", 15, "images.image: there is no column 'picture'"),
    "no caption": ("tokens: 4", "caption: size", 15, "images.caption: the column 'size' must hold texts"),
    "no score": ("similarity: pairs.csv", "similarity: texts.parquet\n  x: 1", 34, "evaluation.x: unknown field"),
    "pairs of one": ("retrieval: {path: pairs.csv, columns: [sentence1, sentence2]}", "retrieval: {path: texts.parquet, columns: [text]}", 34, "must be two columns of"),
    "score first": ("similarity: pairs.csv", "similarity: {path: pairs.csv, columns: [score, sentence1, sentence2]}", 33, "and then"),
    "same folder": ("output: out/model", "output: out\nwork: ./out/", 2, "output and work must be two folders"),
    "folder inside": ("output: out/model", "output: out\nwork: out/run", 2, "the work folder must not be inside the output folder"),
    "output a file": ("output: out/model", "output: a.png", 1, "is a file; name a folder"),
    "output at home": ("output: out/model", "output: ~/model", 1, "output: begins with '~', which is no home folder here; write the whole path"),
    "work at home": ("output: out/model", "output: out/model\nwork: ~/run", 2, "work: begins with '~'"),
    "seed": ("output: out/model", "output: out/model\nseed: yes", 2, "seed: expected a whole number, got the text 'yes'"),
    "seed of 33 bits": ("output: out/model", "output: out/model\nseed: 4294967296", 2, "seed: must be from 0 to 4294967295, got 4294967296"),
    "seed below 0": ("output: out/model", "output: out/model\nseed: -1", 2, "seed: must be from 0 to 4294967295, got -1"),
    "more steps than Python counts": ("steps: 10", "steps: 9223372036854775808", 20, "stages[0].steps: expected a whole number, got a number beyond all measure"),
    "more rows than Python counts": ("tokens: 4", "limit: 1e30", 15, "images.limit: expected a whole number, got a number beyond all measure"),
    "yes": ("max_seq_length: 32", "trust_remote_code: yes", 5, "expected true or false, got the text 'yes'; write true or false"),
    "number for a name": ("max_seq_length: 32", "revision: 12", 5, "expected text, got the number 12; put it in quotes"),
    "unknown preset": ("output:", "preset: jaspar\noutput:", 1, "unknown preset 'jaspar'; did you mean 'jasper'?"),
    "syntax": ("dims: [32, 16]", "dims: [32, 16", 18, "is not valid YAML"),
    "twice": ("    batch: 8", "    steps: 8", 21, "stages[0].steps: is there twice, first in line 20; remove one"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "message"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_found_in_its_line(problems_of, old, new, line, message):
    assert old in BASE
    problems = problems_of(BASE.replace(old, new, 1))
    errors = [problem for problem in problems if problem.level == "error"]
    shown = format_problems(errors)
    assert any(problem.line == line and message in str(problem) for problem in errors), shown
    # One mistake is told once, but for mistakes that are two (a removed field, an unknown one beside it).
    assert len(errors) <= 2, shown


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "", None),
        ("texts:\n", "  - name: other\n    model: BERT\ntexts:\n", "export_teacher: needs one teacher that is a model, got 2 teachers"),
        ("    model: BERT\ntexts", "    vectors: texts.parquet\n    column: vector\n    text_column: text\ntexts", "got one without a 'model'"),
        ("  dims: [32, 16]\n", "  dims: [32, 16]\n  teacher_head: true\n", "which teacher_head takes over"),
        ("  dims: [32, 16]\n", "  dims: [48, 16]\n  start: random\n  rotation: none\n", "the exported teacher has no such axes"),
        ("output: out/model\n", "output: out/model\nwork: out/model-teacher\n", "is written beside the output"),
    ],
)  # fmt: skip
def test_what_the_teachers_export_needs(problems_of, old, new, message):
    assert old in BASE
    problems = problems_of(BASE.replace(old, new, 1) + "export_teacher: true\n")
    errors = [str(problem) for problem in problems if problem.level == "error"]
    assert not errors if message is None else any(message in error for error in errors), errors


@pytest.mark.parametrize(
    ("new", "width"),
    [
        ("    model: BERT\n    truncate_dim: 24\ntexts", 24),
        ("    model: BERT\n  - name: other\n    model: BERT\ntexts", 64),
    ],
)
def test_an_identity_start_needs_the_teachers_width(problems_of, new, width):
    text = BASE.replace("    model: BERT\ntexts", new, 1)
    problems = problems_of(text.replace("dims: [32, 16]", "dims: [24, 16]\n  start: identity"))
    told = f"an identity start takes the student's 32 dimensions for the teachers' {width}; set start: ridge, or rotation: none"
    assert [(problem.path, problem.level, problem.message) for problem in problems] == [
        ("projection.start", "error", told)
    ]
    for remedy in ("start: ridge", "start: identity\n  rotation: none"):
        assert problems_of(text.replace("dims: [32, 16]", f"dims: [24, 16]\n  {remedy}")) == []


def test_the_teachers_export_needs_a_cosine_term(problems_of):
    text = BASE.replace("  - train: projection\n", "  - train: projection\n    losses: {similarity: 1}\n", 1)
    text = text.replace("    epochs: 1\n", "    epochs: 1\n    losses: {similarity: 1}\n", 1) + "export_teacher: true\n"
    assert any("needs a stage with a cosine term" in str(problem) for problem in problems_of(text))


def test_all_mistakes_come_at_once_and_in_order(problems_of):
    text = BASE
    chosen = ("layer", "no column", "dims twice", "negative steps", "batch 0", "library loss", "score first")
    for name in chosen:
        old, new, _, _ = MISTAKES[name]
        text = text.replace(old, new, 1)
    problems = problems_of(text)
    assert [problem.line for problem in problems] == [MISTAKES[name][2] for name in chosen]
    assert {problem.source for problem in problems} == {"recipe.yaml"}
    first = format_problems(problems).splitlines()[0]
    assert first.startswith("recipe.yaml:4: student.layers[2]: the student has 4 layers")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    batch: 8", "    batch: 2\n    losses: {triplet: 1}", "always 0 in a batch of 2 rows"),
        ("    batch: 8", "    batch: 8\n    mini_batch_size: 8", "saves no memory and costs a second forward pass"),
        ("    batch: 8", "    batch: 8\n    mini_batch_size: 4\n    length_parts: 2", "length_parts: has no effect beside mini_batch_size"),
        ("  max_seq_length: 32", "  attn_implementation: flex_attention", "no backward pass on a CPU, and this machine has no"),
        ("    batch: 8", "    batch: 8\n    margin: 0.3", "margin: has no effect where losses are {cosine: 10}; add triplet"),
        ("    batch: 8", "    batch: 8\n    bits: true\n    losses: {cosine: 2}", "bits: has no effect where losses are {cosine: 2}"),
        ("    batch: 8", "    batch: 8\n    dims: full\n    cosine_dims: [16]", "dims: has no effect where losses are {cosine: 10}"),
        ("    batch: 8", "    batch: 8\n    cosine_dims: [16]\n    losses: {triplet: 1}", "cosine_dims: has no effect where losses are {triplet: 1}"),
        ("    model: BERT\ntexts", "    model: BERT\n    device: cuda:99\ntexts", "teachers[0].device: this machine has"),
        ("weight_decay: 0.01", "warmup_ratio: 0.1", "give warmup_steps the same number"),
        ("weight_decay: 0.01", "fp16: true", "fp16: needs an accelerator"),
        ("weight_decay: 0.01", "tf32: true", "tf32: needs an Nvidia GPU of Ampere or later"),
        ("weight_decay: 0.01", "fsdp: full_shard", "fsdp: shares a model out among processes; start several by torchrun"),
        ("weight_decay: 0.01", "debug: underflow_overflow", "debug: underflow_overflow cannot look at masks of attention on a CPU"),
        ("weight_decay: 0.01", "bf16: true", "no accelerator of this machine computes in bf16"),
        ("    model: BERT\n", "    model: some/model\n", "'some/model' is not in the local cache, and the hub is switched off"),
        ("  tokens: 4", "  tokens: 3", "4 x 4 patches give 1, 4, 16 tokens, got 3"),
    ],
)  # fmt: skip
def test_what_may_be_right_elsewhere_is_a_warning(problems_of, old, new, message, monkeypatch):
    monkeypatch.setattr(run_rules, "is_torch_bf16_gpu_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(run_rules, "is_torch_tf32_available", lambda: False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    problems = problems_of(BASE.replace(old, new, 1))
    assert {problem.level for problem in problems} == {"warning"}
    assert message in format_problems(problems)
    assert ": warning: " in format_problems(problems)


FLEX = BASE.replace("  max_seq_length: 32", "  attn_implementation: flex_attention")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("weight_decay: 0.01", "use_cpu: true", "student.attn_implementation: flex_attention has no backward pass on a CPU, and use_cpu"),
        ("train: {last_layers: 2}", "train: all\n    dropout: 0.1", "stages[1].dropout: flex_attention has no dropout, got 0.1; set dropout: 0"),
        ("train: {last_layers: 2}", "train: ['layer\\.0\\.']\n    dropout: null", "stages[1].dropout: flex_attention has no dropout, got 0.1; set"),
    ],
)  # fmt: skip
def test_what_flex_attention_cannot_do(problems_of, old, new, message):
    (problem,) = [problem for problem in problems_of(FLEX.replace(old, new, 1)) if problem.level == "error"]
    assert message in format_problems([problem])


@pytest.mark.parametrize(
    ("machine", "capability", "imitates"),
    [("x86_64", "AVX2", True), ("AMD64", "AVX512", False), ("arm64", "DEFAULT", False)],
)
def test_bf16_that_a_processor_imitates_is_told(machine, capability, imitates, problems_of, monkeypatch):
    monkeypatch.setattr(run_rules, "is_torch_bf16_gpu_available", lambda: False)
    monkeypatch.setattr(run_rules.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    told = (
        "the processor only imitates it (without AVX-512), which takes many times as long; leave it out to run it here"
    )
    for argument in ("bf16: true", "{bf16: true, use_cpu: true}"):
        said = format_problems(problems_of(BASE.replace("weight_decay: 0.01", argument, 1)))
        assert (told in said) == imitates
    assert ("warning" in said) == imitates


def test_bf16_without_an_accelerator_is_no_run(problems_of, monkeypatch, folder):
    monkeypatch.setattr(run_rules, "is_torch_bf16_gpu_available", lambda: False)
    monkeypatch.setattr(run_rules, "_imitates_bf16", lambda: False)
    problems_of(BASE.replace("weight_decay: 0.01", "bf16: true", 1))
    with pytest.raises(RecipeError, match=r"arguments\.bf16: no accelerator .* add use_cpu: true to run it here"):
        run("recipe.yaml")
    assert not (folder / "out").exists()


@pytest.mark.parametrize("argument", ["fp16: true", "tf32: true", "fsdp: full_shard", "debug: underflow_overflow"])
def test_what_this_machine_cannot_do_is_no_run(problems_of, monkeypatch, folder, argument):
    monkeypatch.setattr(run_rules, "is_torch_tf32_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    problems_of(BASE.replace("weight_decay: 0.01", argument, 1))
    with pytest.raises(RecipeError, match=rf"stages\[1\]\.arguments\.{argument.split(':')[0]}: "):
        run("recipe.yaml")
    assert not (folder / "out").exists()


def test_masks_of_attention_that_are_numbers_can_be_looked_at_anywhere(problems_of):
    text = BASE.replace("weight_decay: 0.01", "debug: underflow_overflow", 1)
    assert problems_of(text.replace("  max_seq_length: 32", "  attn_implementation: eager", 1)) == []


def test_flex_attention_without_an_accelerator_is_no_run(problems_of, monkeypatch, folder):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    problems_of(FLEX)
    (problem,) = check("recipe.yaml", here=True)
    assert (problem.level, problem.path) == ("error", "student.attn_implementation")
    with pytest.raises(RecipeError, match="flex_attention has no backward pass on a CPU, and this machine has no"):
        run("recipe.yaml")
    assert not (folder / "out").exists()
    stages = FLEX.index("  - train: {last_layers")
    problems_of(FLEX[:stages] + FLEX[FLEX.index("evaluation:") :].replace("  images: pictures.jsonl\n", ""))
    # A stage that trains the projection alone has no use for the encoder's backward pass.
    assert "flex_attention" not in format_problems(check("recipe.yaml", here=True))


def test_kernels_of_the_alibi_encoder(problems_of, tiny_alibi, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    text = BASE.replace("model: BERT\n  layers: [0, 1, 3]", f"model: {tiny_alibi}\n  pooling: mean", 1)
    text = text.replace("  max_seq_length: 32", "  attn_implementation: KERNEL")
    for kernel in ("blockwise", "sdpa", "eager", "flex_attention"):
        assert "attn_implementation" not in format_problems(problems_of(text.replace("KERNEL", kernel)))
    told = "has no 'flash_attention_2'; leave it out, or set blockwise, sdpa, eager or flex_attention"
    assert told in format_problems(problems_of(text.replace("KERNEL", "flash_attention_2")))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("weight_decay: 0.01", "{eval_strategy: epoch, save_strategy: epoch, load_best_model_at_end: true}"),
        ("weight_decay: 0.01", "{eval_strategy: epoch, save_strategy: best, metric_for_best_model: eval_overlap1_32}"),
        ("weight_decay: 0.01", "{bf16: true, use_cpu: true, lr_scheduler_type: cosine, eval_strategy: no, warmup_steps: 0.1}"),
        ("weight_decay: 0.01", "{batch_sampler: no_duplicates, learning_rate_mapping: {encoder: 1e-5}, optim: adamw_torch}"),
        ("    epochs: 1\n    arguments:\n      weight_decay: 0.01", "    arguments: {max_steps: 3, learning_rate: 1e-4}"),
        ("weight_decay: 0.01", "{lr_scheduler_type: warmup_stable_decay, lr_scheduler_kwargs: {num_decay_steps: 2}, log_level: error, ddp_backend: gloo}"),
        ("weight_decay: 0.01", "{lr_scheduler_type: polynomial, lr_scheduler_kwargs: {lr_end: 8e-5}}"),
        ("weight_decay: 0.01", "{optim: sgd, optim_args: 'momentum=0.9, nesterov=true', torch_compile_mode: max-autotune, torch_compile_backend: inductor}"),
        ("batch: 8", "arguments: {learning_rate_mapping: {linears: 1e-3, '^model.0.': 1e-5}}"),
        ("weight_decay: 0.01", "learning_rate_mapping: {lora_: 1e-3}\n    lora: {r: 8}"),
        ("train: {last_layers: 2}", "train: all\n    lora: {r: 8, lora_alpha: 16, target_modules: [query, value]}"),
        ("train: {last_layers: 2}", "train: ['layer\\.0\\.', bias]"),
        ("steps: 10", "steps: 1e1"),
        ("batch: 8", "dims: full\n    cosine_dims: [16]\n    losses: {cosine: 1, similarity: 1}"),
        ("dims: [32, 16]", "dims: [48, 16]\n  start: random\n  rotation: none\n  teacher_head: true"),
        ("vision: SIGLIP", "vision: {model_type: siglip_vision_model, hidden_size: 24, num_attention_heads: 2, image_size: 32, patch_size: 8}"),
        ("- path: texts.parquet", "- texts.parquet\n  - path: texts.parquet\n    roles: {text: query}"),
        ("    model: BERT\n", "    vectors: texts.parquet\n    column: vector\n    text_column: text\n  - model: BERT\n"),
        ("also:\n", "also:\n      - {loss: CoSENTLoss, texts: pairs.csv, options: {scale: 20}}\n"),
    ],
)  # fmt: skip
def test_what_is_right_is_not_complained_of(problems_of, old, new, monkeypatch):
    assert old in BASE
    monkeypatch.setattr(run_rules, "_imitates_bf16", lambda: False)
    assert format_problems(problems_of(BASE.replace(old, new, 1))) == ""


def test_presets_are_right_but_for_the_files_that_the_user_has(folder):
    for name in presets():
        # Which student and teachers is the user's choice in the default preset.
        given = ["student.model=some/student", "teachers=[some/teacher]"] if name == "default" else []
        errors = [problem for problem in check(name, given) if problem.level == "error"]
        wanted = {"texts", "images"} if name == "jasper" else {"texts"}
        assert {problem.path for problem in errors} == wanted, format_problems(errors)


def test_a_recipe_over_a_preset_names_the_file_of_each_mistake(folder):
    Path("mine.yaml").write_text(
        "preset: jasper\ntexts: texts.parquet\nimages: {path: nothing}\nstages: {dimensions: {dims: [7]}}\n"
    )
    problems = [problem for problem in check("mine.yaml") if problem.level == "error"]
    assert [str(problem).split(": ")[0:2] for problem in problems] == [
        ["mine.yaml:3", "images.path"],
        ["mine.yaml:4", "stages[2].dims[0]"],
    ]
    Path("mine.yaml").write_text("preset: jasper\ntexts: texts.parquet\nstages: {vision: null}\n")
    assert [problem for problem in check("mine.yaml") if problem.level == "error"] == []


def test_overrides_are_checked_and_named(problems_of):
    assert problems_of(BASE) == []
    (problem,) = check("recipe.yaml", ["stages.0.steps=-1"])
    assert str(problem) == "--set stages.0.steps=-1: stages[0].steps: must be at least 1, got -1"


@pytest.fixture
def recipe(folder, tiny_bert) -> Recipe:
    return Recipe(
        output="out",
        student=Student(model=tiny_bert),
        teachers=[TeacherSpec(model=tiny_bert)],
        texts=[Texts(data=["one", "two"])],
        projection=Projection(dims=[32]),
        stages=[Stage(train="all", epochs=1)],
    )


def test_a_recipe_made_in_python_has_no_lines(recipe):
    assert check(recipe) == []
    recipe.stages[0].epochs = -1.0
    recipe.student.layers = [9]
    assert sorted(format_problems(check(recipe)).splitlines()) == [
        "stages[0].epochs: must be above 0, got -1",
        "student.layers[0]: the student has 4 layers, so a layer is 0 to 3, got 9",
    ]


def test_vectors_on_disk(recipe):
    np.save("vectors.npy", np.zeros((2, 24), dtype=np.float16))
    recipe.teachers = [TeacherSpec(vectors="vectors.npy")]
    assert "teachers[0]: vectors in an npy file need 'texts'" in format_problems(check(recipe))
    assert "32 is above the teachers' 24 dimensions" in format_problems(check(recipe))
    recipe.teachers[0].texts = Texts(data=["one", "two"])
    recipe.projection.dims = [24]
    assert check(recipe) == []
    recipe.teachers[0].texts = Texts(data=["one", "two", "three"])
    assert (
        "teachers[0].texts: there must be a text for each of the 2 vectors in vectors.npy, in the same order, got 3"
        in (format_problems(check(recipe)))
    )
    Path("texts.jsonl").write_text('{"text": "one"}\n{"text": \n')
    recipe.teachers[0].texts = Texts(path="texts.jsonl")
    assert "Line 2 of texts.jsonl is not valid JSON" in format_problems(check(recipe))


VECTORS = [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", "b"], "one": VECTORS, "two": VECTORS}, r"'column' .* such columns are \['one', 'two'\]"),
        ({"text": ["a", "b"], "one": [1.0, 2.0]}, "'column' .* such columns are none"),
        ({"text": ["a", "b"], "one": [["x"], ["y"]]}, "'column' .* such columns are none"),
        ({"one": VECTORS}, "'text_column' .* such columns are none"),
        ({"text": ["a", "b"], "title": ["c", "d"], "one": VECTORS}, r"'text_column' .* \['text', 'title'\]"),
    ],
)
def test_vectors_are_opened_as_a_run_opens_them(columns, message, recipe):
    pq.write_table(pa.table(columns), "vectors.parquet")
    recipe.teachers = [TeacherSpec(vectors="vectors.parquet")]
    assert re.search(rf"teachers\[0\]\.vectors: .*{message}", format_problems(check(recipe)))


def test_an_array_of_no_real_numbers(recipe):
    np.save("vectors.npy", np.zeros((2, 4), dtype=np.complex64))
    recipe.teachers = [TeacherSpec(vectors="vectors.npy", texts=Texts(data=["one", "two"]))]
    assert "must be numbers of shape (texts, dimension). Got complex64" in format_problems(check(recipe))


@pytest.mark.parametrize("kind", [pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_texts_of_other_types_of_arrow(kind, recipe):
    texts = pa.array(["one", "two"]).cast(kind)
    pq.write_table(pa.table({"text": texts, "vector": VECTORS}), "vectors.parquet")
    recipe.teachers, recipe.projection = [TeacherSpec(vectors="vectors.parquet")], Projection(dims=[2])
    recipe.texts = [Texts(path="vectors.parquet", columns=["text"])]
    assert check(recipe) == []
    assert make_teacher(recipe.teachers[0]).encode(["two"]).tolist() == [[3.0, 4.0]]
    assert load_texts(recipe.texts[0])["text"][:] == ["one", "two"]


def test_the_width_of_a_sentence_transformers_teacher(recipe, make_student, tmp_path):
    from sentence_transformers.sentence_transformer.modules import Dense

    make_student(Dense(32, 20)).save(str(tmp_path / "teacher"))
    recipe.teachers.append(TeacherSpec(model=str(tmp_path / "teacher")))
    recipe.projection = Projection(dims=[53])
    assert "53 is above the teachers' 52 dimensions" in format_problems(check(recipe))
    recipe.student = Student(model=str(tmp_path / "teacher"), pooling="cls")
    assert "leave pooling out" in format_problems(check(recipe))


def test_positions_that_no_token_has_are_not_counted(recipe, tiny_bert, tmp_path):
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "roberta")
    RobertaConfig(hidden_size=8, num_attention_heads=2, max_position_embeddings=20).save_pretrained(
        tmp_path / "roberta"
    )
    recipe.student = Student(model=str(tmp_path / "roberta"), max_seq_length=19)
    (problem,) = check(recipe)
    assert format_problems([problem]) == "student.max_seq_length: the student takes at most 18 tokens, got 19"
    recipe.student.max_seq_length = 18
    assert check(recipe) == []


def test_all_that_a_projection_wider_than_the_teachers_needs(recipe):
    recipe.projection, recipe.export_teacher = Projection(dims=[48, 16]), True
    (problem,) = check(recipe)
    assert str(problem) == (
        "projection.dims[0]: 48 is above the teachers' 32 dimensions: a ridge start cannot give it; a rotation cannot reach it; "
        "the cosine term has nothing to compare it with; the exported teacher has no such axes. Leave it out, or set "
        "start: random, and rotation: none, and teacher_head: true (or losses without the cosine), and export_teacher: false"
    )
    recipe.projection.start = "random"
    assert "a ridge start" not in format_problems(check(recipe))
    recipe.projection.rotation, recipe.export_teacher = "none", False
    (problem,) = check(recipe)
    assert problem.message.endswith("Leave it out, or set teacher_head: true (or losses without the cosine)")
    recipe.projection.teacher_head = True
    assert check(recipe) == []
    recipe.projection.teacher_head, recipe.stages[0].losses = False, {"similarity": 1.0}
    assert check(recipe) == []


def test_the_model_of_a_stage_is_to_be_exported(recipe, tmp_path):
    (tmp_path / "stage").mkdir()
    module = {"idx": 0, "name": "0", "path": "", "type": "st_distill.modules.matryoshka.MatryoshkaProjection"}
    (tmp_path / "stage" / "modules.json").write_text(json.dumps([module]))
    recipe.student = Student(model=str(tmp_path / "stage"))
    told = format_problems(check(recipe))
    assert f"write it as a standard model with st-distill export {tmp_path / 'stage'} FOLDER, and name that" in told
    assert "trust_remote_code" not in told


def test_a_model_that_needs_its_own_code(recipe, tmp_path):
    (tmp_path / "own").mkdir()
    config = {"model_type": "nobody_knows", "auto_map": {"AutoModel": "modeling.Model"}}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    recipe.student = Student(model=str(tmp_path / "own"))
    assert (
        "needs code of its own (model type 'nobody_knows'); if you trust it, give --set student.trust_remote_code=true"
        in (format_problems(check(recipe)))
    )
    recipe.student.trust_remote_code = True
    assert check(recipe) == []
    (tmp_path / "own" / "config.json").write_text("{")
    assert "is not valid JSON" in format_problems(check(recipe))
    (tmp_path / "own" / "config.json").unlink()
    assert "holds no model" in format_problems(check(recipe))


@pytest.mark.parametrize(
    ("error", "level", "message"),
    [
        ("RepositoryNotFoundError", "error", "the hub has no model 'some/model'"),
        ("RevisionNotFoundError", "error", "has no revision 'v9'"),
        ("GatedRepoError", "warning", "is gated on the hub"),
        ("ConnectionError", "warning", "could not be looked up on the hub"),
    ],
)
def test_the_hub_is_asked_where_it_can_be(recipe, monkeypatch, error, level, message):
    kind = getattr(errors, error, ConnectionError)

    def fail(*args, **kwargs):
        raise kind.__new__(kind)  # the hub's own exceptions want an answer of its HTTP library

    monkeypatch.setattr(models, "constants", SimpleNamespace(HF_HUB_OFFLINE=False))
    monkeypatch.setattr(models, "hf_hub_download", fail)
    monkeypatch.setattr(models, "_hub_answers", lambda: True)
    recipe.teachers = [TeacherSpec(model="some/model", revision="v9")]
    (problem,) = check(recipe)
    assert problem.level == level
    assert message in problem.message


def test_a_hub_that_does_not_answer_is_a_warning(recipe, monkeypatch):
    endpoint = SimpleNamespace(
        HF_HUB_OFFLINE=False, ENDPOINT="http://127.0.0.1:9"
    )  # nobody listens at the discard port
    monkeypatch.setattr(models, "constants", endpoint)
    models._hub_answers.cache_clear()
    recipe.teachers = [TeacherSpec(model="some/model")]
    (problem,) = check(recipe)
    models._hub_answers.cache_clear()
    assert problem.level == "warning"
    assert "the hub does not answer: not checked" in problem.message


def test_python_data_is_looked_at(recipe):
    recipe.texts = [Texts(data=Dataset.from_dict({"a": ["x"], "n": [1]}), columns=["b"])]
    assert "texts[0].columns[0]: there is no such column; it may be a or n" in format_problems(check(recipe))


def test_python_teachers_are_looked_at(recipe):
    def function(texts):
        return np.ones((len(texts), 4))

    def found(**fields) -> str:
        recipe.teachers = [TeacherSpec(**fields)]
        return format_problems(check(recipe))

    assert "teachers[0]: a function needs a 'revision'" in found(teacher=function)
    assert "a function needs" not in found(teacher=function, revision="1")
    teacher = Teacher(function, name="own", revision="1")
    assert "teachers" not in found(teacher=teacher)
    assert "teachers[0].prompts: means nothing for a Teacher" in found(teacher=teacher, prompts="query: ")
    assert "teachers[0].name: the Teacher is called 'own', got 'other'" in found(teacher=teacher, name="other")


def test_a_teacher_called_student(recipe, tmp_path):
    recipe.evaluation = Evaluation(texts=Texts(data=["a", "b"]))
    recipe.teachers = [TeacherSpec(model=str(tmp_path / "teacher"), name="student")]
    assert "teachers[0].name: 'student' is taken" in format_problems(check(recipe))
    recipe.evaluation.teachers = False
    assert "is taken" not in format_problems(check(recipe))


def test_what_cannot_be_read_is_one_problem(folder):
    (problem,) = check("nothing.yaml")
    assert "the recipe 'nothing.yaml' is no file" in problem.message
    Path("list.yaml").write_text("- 1\n")
    (problem,) = check("list.yaml")
    assert (problem.line, problem.message[:17]) == (1, "must be a mapping")


def test_nothing_is_written_and_no_state_is_left(problems_of):
    before = sorted(Path(".").iterdir())
    problems_of(BASE)
    assert sorted(Path(".").iterdir()) == sorted([*before, Path("recipe.yaml")])


def test_checking_leaves_the_accelerator_alone(recipe):
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    check(recipe)
    assert not PartialState._shared_state


def test_a_loaded_recipe_and_its_file_have_the_same_problems(problems_of):
    text = BASE.replace("[0, 1, 3]", "[0, 1, 7]")
    from_file = problems_of(text)
    from_object = check(load_recipe("recipe.yaml"))
    assert [problem.message for problem in from_file] == [problem.message for problem in from_object]


def test_a_start_that_nobody_asked_for_is_no_further_mistake(recipe):
    plain = replace(recipe, teachers=[], projection=replace(recipe.projection, start=None))
    assert "projection.start" not in format_problems(check(plain))
    asked = replace(recipe, teachers=[], projection=replace(recipe.projection, start="ridge"))
    assert "projection.start: a ridge start needs a teacher" in format_problems(check(asked))


def test_nothing_of_the_users_is_written_over(recipe, folder, tiny_bert):
    Path("mine").mkdir()
    Path("mine/precious.txt").write_text("x")
    foreign = "{}' holds '{}', which is no export's; move that away, or name a new folder"
    assert foreign.format("mine", "precious.txt") in format_problems(check(replace(recipe, output="mine")))
    assert "'mine' holds other files than a run's" in format_problems(check(replace(recipe, output="new", work="mine")))
    (problem,) = check(replace(recipe, output=tiny_bert))  # once, though it holds other files too
    assert problem.message == f"'{tiny_bert}' is a model that the recipe reads; name another folder"
    Path("mine/st_distill.json").write_text("{}")
    assert foreign.format("mine", "precious.txt") in format_problems(check(replace(recipe, output="mine")))
    shutil.copytree(Path(__file__).parents[1] / "compatibility/0.1.0/exported", "exported")
    assert check(replace(recipe, output="exported")) == []
    Path("exported/.git").mkdir()
    Path("exported/.git/config").touch()
    assert foreign.format("exported", ".git/config") in format_problems(check(replace(recipe, output="exported")))
    shutil.rmtree("exported/.git")
    Path("exported/README.md").write_text("edited")
    for unfinished in ("README.md.4711.tmp", "1_Dense/config.json.4711.tmp"):  # of a run that was killed
        Path("exported", unfinished).touch()
    assert check(replace(recipe, output="exported")) == []
    Path("exported/notes.md.2024.tmp").touch()
    assert foreign.format("exported", "notes.md.2024.tmp") in format_problems(check(replace(recipe, output="exported")))
    Path("exported/notes.md.2024.tmp").unlink()
    Path("exported/1_Dense/link").symlink_to(tiny_bert)
    assert foreign.format("exported", "1_Dense/link") in format_problems(check(replace(recipe, output="exported")))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"output": " "}, "output: must end with the name of a folder, got ' '; name one, such as out/model"),
        ({"output": "."}, "output: must end with the name of a folder, got '.'"),
        ({"work": " "}, "work: must end with the name of a folder"),
        ({"output": "/proc/x"}, "output: lies in /proc, which is the system's; name another place"),
        ({"output": "/dev/x"}, "output: lies in /dev, which is the system's"),
        ({"work": "/dev/x"}, "work: lies in /dev, which is the system's"),
        ({"output": "s3://bucket/x"}, "output: is an address, not a place on this machine; name another place"),
        ({"output": "n" * 300}, "output: is longer than names can be"),
        ({"output": "a\0b"}, "output: holds a zero byte, which no name may"),
        ({"output": "dangling"}, "output: 'dangling' is a link; name the folder that it leads to"),
        ({"output": "link"}, "output: 'link' is a link"),
        ({"output": "loop"}, "output: 'loop' is a link"),
        ({"output": "file/model"}, "output: 'file' is no folder; name another place"),
        ({"work": "file/run"}, "work: 'file' is no folder"),
        ({"work": "loop"}, "work: 'loop' is a link that leads to itself; remove it, or name another place"),
        ({"work": "dangling"}, "work: 'dangling' is a link to what is not there; make that folder, or name another"),
        ({"output": "dangling/x"}, "output: 'dangling' is a link to what is not there"),
        (
            {"output": "other-run/stages/1-all/model/inner"},
            "stages/1-all/model, where a run has its stages; name another",
        ),
    ],
)
def test_places_that_are_none(fields, told, recipe):
    Path("file").touch()
    Path("real").mkdir()
    Path("other-run/stages/1-all/model").mkdir(parents=True)
    Path("other-run/run.copy.json").touch()
    for name, target in (("dangling", "nothing"), ("link", "real"), ("loop", "loop")):
        Path(name).symlink_to(target)
    (problem,) = check(replace(recipe, **fields))
    assert told in str(problem)


def test_a_work_folder_may_be_a_link(recipe):
    Path("real").mkdir()
    Path("link").symlink_to("real")
    assert check(replace(recipe, work="link")) == []


def test_a_model_within_the_output_is_kept(recipe, tiny_bert):
    Path("mine").mkdir()
    Path("mine/st_distill.json").write_text("{}")
    shutil.copytree(tiny_bert, "mine/bert")
    inner = replace(recipe, output="mine", student=replace(recipe.student, model="mine/bert"))
    assert "output: 'mine/bert', which the recipe reads, lies in it; name another folder" in format_problems(
        check(inner)
    )


@pytest.mark.parametrize(
    "files",
    [
        {"lock": "of my diary", "start/monday.txt": "rain"},
        {"teachers/list.txt": "Ada", "notes.txt": "x"},
        {"stages/one.txt": "a stage", "letter.tmp": "Dear"},
    ],
)
def test_a_folder_with_the_names_of_a_run_is_the_users(recipe, files, tmp_path):
    for name, content in files.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(content)
    said = format_problems(check(replace(recipe, output="new", work=str(tmp_path / "mine"))))
    assert "holds other files than a run's; name a new folder" in said


@pytest.mark.parametrize(
    "files",
    [
        {"lock": "process 17\n", "run.json.17.tmp": "{"},
        {"teachers/store.json": "{}", "notes.txt": "x"},
        {"run.copy.json": "{}"},
    ],
)
def test_what_a_killed_run_leaves_is_a_runs(recipe, files, tmp_path):
    for name, content in files.items():
        (tmp_path / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / name).write_text(content)
    assert check(replace(recipe, output="new", work=str(tmp_path / "work"))) == check(replace(recipe, output="new"))


@pytest.mark.parametrize(("on_error", "level"), [("stop", "error"), ("skip", "warning")])
def test_pictures_that_are_not_there(problems_of, on_error, level):
    rows = [{"image": name, "caption": "a picture"} for name in ("a.png", "b.png", "c.png")]
    Path("pictures.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = problems_of(BASE.replace("  tokens: 4", f"  tokens: 4\n  on_error: {on_error}"))
    assert {problem.path: problem.level for problem in found} == {
        "images.path": level,
        "evaluation.images.path": "error",
    }
    assert "images.path: pictures that are not there: 2, the first in row 1, 'b.png'" in format_problems(found)


@pytest.mark.parametrize("field", ["group_by_length", "window_shards"])
def test_two_that_make_the_batches(problems_of, field):
    text = BASE.replace("    epochs: 1\n", f"    epochs: 1\n    {field}: {'true' if 'group' in field else 2}\n")
    text = text.replace("weight_decay: 0.01", "batch_sampler: no_duplicates")
    assert any(f"cannot stand beside {field}" in problem.message for problem in problems_of(text))


TASKS = BASE.replace("  - train: vision\n    steps: 5\n", "").replace("images: pictures.jsonl\n", "tasks: [TASK]\n")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "image_retrieval:pictures.jsonl",
            "needs a student that takes pictures, and this one takes texts alone; leave it out, or add a stage",
        ),
        ("image_retrieval:owner/pictures", "needs a student that takes pictures"),
        ("clusters.jsonl", "Row 1 of clusters.jsonl must have a label, a text, in column 'label'. Got None"),
        ("{source: pairs.csv, name: 3}", "The 'name' of a task must be a text. Got 3 instead"),
    ],
)
def test_a_task_that_cannot_be_measured_is_found_before_the_run(problems_of, task, message):
    Path("clusters.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n')
    (problem,) = [problem for problem in problems_of(TASKS.replace("TASK", task)) if problem.level == "error"]
    assert problem.path == "evaluation.tasks[0]"
    assert message in problem.message


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("texts: gap.jsonl", "Row 1 of gap.jsonl has no text in column 'b' (null)"),
        ("retrieval: {path: gap.jsonl, columns: [a, b]}", "Row 1 of gap.jsonl has no text in column 'b' (null)"),
        (
            "similarity: {path: scores.jsonl, columns: [a, c, score]}",
            "Row 1 of scores.jsonl has no number in column 'score'",
        ),
        (
            "similarity: equal.csv",
            "equal.csv must hold at least two different scores in column 'score', or there is no order",
        ),
        (
            "similarity: words.csv",
            "must have two columns of texts and then one of numbers, got a (text), c (text), score (text)",
        ),
        ("images: broken.jsonl", "broken.jsonl has a picture that cannot be read"),
    ],
)
def test_rows_of_an_evaluation_are_looked_at_before_the_run(problems_of, part, message):
    Path("gap.jsonl").write_text('{"a": "x", "b": "y"}\n{"a": "x", "b": null}\n')
    Path("scores.jsonl").write_text('{"a": "x", "c": "y", "score": 1}\n{"a": "x", "c": "z", "score": null}\n')
    Path("equal.csv").write_text("a,c,score\nx,y,1\nx,z,1.0\n")
    Path("words.csv").write_text("a,c,score\nx,y,1\nx,z,n/a\n")
    Path("broken.png").write_bytes(b"no picture")
    Path("broken.jsonl").write_text('{"image": "broken.png", "caption": "a"}\n')
    field = part.partition(":")[0]
    line = {
        text.strip().partition(":")[0]: text for text in BASE.partition("evaluation:\n")[2].splitlines(keepends=True)
    }
    (told,) = [
        problem
        for problem in problems_of(BASE.replace(line[field], f"  {part}\n"))
        if problem.path.startswith(f"evaluation.{field}")
    ]
    assert (told.path, told.level) == (f"evaluation.{field}", "error")
    assert message in told.message


@pytest.mark.parametrize(
    ("first", "bad", "columns", "message"),
    [
        ({"text": "a"}, {"text": 5}, None, "column 'text' of rows.jsonl must hold texts alone, or numbers alone. Got the number 5 in row 9"),
        ({"text": "a"}, {"text": ["a", "b"]}, None, "Got a list in row 9"),
        ({"text": "a"}, {"text": math.nan}, ["text"], "Got the number nan in row 9"),
        ({"text": "a", "title": "b"}, {"text": 5, "title": "b"}, None, "column 'text' of rows.jsonl"),
        ({"text": 1}, {"text": 5}, None, "there is no column of texts, only text"),
    ],
)  # fmt: skip
def test_a_row_of_another_kind_is_named(problems_of, first, bad, columns, message):
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [first] * 9 + [bad] + [first] * 10))
    chosen = "" if columns is None else f"\n    columns: {columns}"
    recipe = BASE.replace("path: texts.parquet\n    columns: [text]", f"path: rows.jsonl{chosen}", 1)
    (told,) = [found.message for found in problems_of(recipe) if found.path.startswith("texts[0]")]
    assert message in told


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("\ud800", r"must hold text that UTF-8 can hold, without unpaired surrogates, in column 'text', as the other rows do. Got '\ud800' instead"),
        (5, "must hold text in column 'text', as the other rows do. Got the number 5 instead"),
    ],
)  # fmt: skip
def test_the_beginning_of_a_text_format_is_read(problems_of, bad, message):
    """Beyond the rows too that the columns are judged by; not beyond the source's limit."""
    Path("rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ["a"] * 1200 + [bad]))
    recipe = BASE.replace("path: texts.parquet\n    columns: [text]", "path: rows.jsonl", 1)
    (told,) = [found for found in problems_of(recipe) if found.path.startswith("texts[0]")]
    assert (told.path, told.message.rstrip(".")) == ("texts[0].path", f"Row 1200 of rows.jsonl {message}")
    limited = problems_of(recipe.replace("path: rows.jsonl", "path: rows.jsonl\n    limit: 1200"))
    assert not [problem for problem in limited if problem.path.startswith("texts[0]")]


@pytest.mark.parametrize("name", ["gap.jsonl", "gap.parquet"])
def test_a_text_that_is_missing_is_seen_before_the_run(problems_of, name):
    rows = [{"a": "x", "b": "y", "image": "a.png"}, {"a": "x", "b": None, "image": "a.png"}]
    if name.endswith("jsonl"):
        Path(name).write_text("\n".join(map(json.dumps, rows)))
    else:
        Dataset.from_list(rows).to_parquet(name)
    told = f"Row 1 of {name} has no text in column 'b' (null). Fill it or remove the row"
    for before, after, place in (
        ("path: texts.parquet\n    columns: [text]", f"path: {name}\n    columns: [a, b]", "texts[0]"),
        (
            "{path: pairs.csv, columns: [sentence1",
            f"{{path: {name}, columns: [a, b], prompts: {{}}}} # [",
            "stages[1].also[0].texts[0]",
        ),
        ("path: pictures.jsonl\n", f"path: {name}\n  caption: b\n", "images"),
    ):
        assert (place, told) in [(found.path, found.message) for found in problems_of(BASE.replace(before, after, 1))]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_texts_without_rows(problems_of, ending):
    path = Path(f"empty.{ending}")
    if ending == "parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    else:
        path.write_text("text\n" if ending == "csv" else "")
    told = problems_of(BASE.replace("evaluation:\n  texts: texts.parquet", f"evaluation:\n  texts: {path}"))
    assert [(problem.path, problem.message) for problem in told] == [("evaluation.texts", f"{path} has no rows")]


def test_tasks_of_one_name(problems_of):
    told = problems_of(TASKS.replace("TASK", "{source: pairs.csv, name: x}, {source: pairs.csv, name: x}"))
    assert "evaluation.tasks: The 'name' of a task must be its alone. Got 'x'" in format_problems(told)


def test_pictures_to_measure_on_are_for_a_student_that_may_take_them(problems_of):
    recipe = TASKS.replace("tasks: [TASK]", "images: pictures.jsonl")
    assert "images: no stage trains vision, so these are not used" in format_problems(problems_of(recipe))
    told = {problem.path: problem for problem in problems_of(recipe)}["evaluation.images"]
    assert told.level == "error"
    assert "this one takes texts alone" in told.message
    told = {problem.path: problem for problem in problems_of(recipe.replace("model: BERT", "model: some/model"))}
    assert told["evaluation.images"].level == "warning"


def test_a_task_with_pictures_is_for_a_student_that_may_take_them(problems_of):
    with_vision = BASE.replace("images: pictures.jsonl\n", "tasks: [image_retrieval:pictures.jsonl]\n")
    assert problems_of(with_vision) == []
    unknown = TASKS.replace("TASK", "image_retrieval:pictures.jsonl").replace(
        "student:\n  model: BERT", "student:\n  model: some/model"
    )
    told = {problem.path: problem for problem in problems_of(unknown)}["evaluation.tasks[0]"]
    assert told.level == "warning"
    assert "the student has to be an image model already" in told.message

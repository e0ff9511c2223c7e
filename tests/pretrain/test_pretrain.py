from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch.nn import functional
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

from st_distill.cli import main
from st_distill.errors import RecipeError
from st_distill.modules import AlibiBertConfig, AlibiBertForMaskedLM
from st_distill.modules.alibi_config import SIZES as published_sizes
from st_distill.pretrain import evaluate_encoder, load_pretraining, pretrain, runner
from st_distill.pretrain.check import check_pretraining
from st_distill.pretrain.evaluation import held_out_documents, masked_accuracy
from st_distill.pretrain.heads import places_of, predict
from st_distill.pretrain.masking import IGNORED, WordMasker
from st_distill.pretrain.schema import PRETRAINING
from st_distill.recipe.load import DISTILLATION, presets
from st_distill.recipe.state import RunState
from st_distill.verify import verify

RECIPE = """\
output: {folder}/out
encoder:
  config: {{model_type: bert, num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 2, intermediate_size: 64,
            max_position_embeddings: 64}}
tokenizer: {{train: wordpiece, vocab_size: 300}}
texts: {{path: {folder}/texts.parquet}}
max_length: 32
batch: 16
learning_rate: 1.0e-2
steps: 12
arguments: {{use_cpu: true, disable_tqdm: true, save_steps: 5, logging_steps: 4}}
evaluation: {{texts: {folder}/held-out.parquet, lengths: [16, 32, 64]}}
"""


@pytest.fixture
def recipe(tmp_path, documents):
    """A recipe that learns its tokenizer from 60 texts."""
    Dataset.from_dict({"text": documents}).to_parquet(tmp_path / "texts.parquet")
    Dataset.from_dict({"text": [" ".join(documents[n : n + 4]) for n in range(0, 40, 4)]}).to_parquet(
        tmp_path / "held-out.parquet"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


@pytest.fixture
def twin_recipe(recipe, tmp_path, tokenizers):
    """The same with a tokenizer that is there already: a trained one differs where pairs are equally common."""
    tokenizers["wordpiece"].save_pretrained(tmp_path / "tokenizer")
    recipe.write_text(
        recipe.read_text().replace("{train: wordpiece, vocab_size: 300}", f"{{model: {tmp_path}/tokenizer}}")
    )
    return recipe


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def tiny_config(**options):
    return BertConfig(vocab_size=320, **SIZES, **options)


def weights(folder):
    return AutoModelForMaskedLM.from_pretrained(folder).state_dict()


def test_from_texts_to_an_encoder(recipe, tmp_path, capsys, documents):
    assert main(["pretrain", str(recipe), "--json", str(tmp_path / "figures.json")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"The model is in {tmp_path}/out."
    results = json.loads((tmp_path / "figures.json").read_text())
    assert list(results["lengths"]) == ["16", "32", "64"]
    # Pieces of a document are measured on the same masked tokens, but for what is left over at its end; how much that
    # is depends on the tokenizer, which differs where pairs are equally common.
    measured = [figures["masked"] for figures in results["lengths"].values()]
    assert max(measured) - min(measured) <= 0.25 * max(measured)
    # Twelve steps are enough to learn something of how common the 300 tokens are.
    assert results["lengths"]["32"]["loss"] < math.log(300) - 0.5
    assert (tmp_path / "out-run" / "accuracy.png").read_bytes().startswith(b"\x89PNG")

    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert model.encode(documents[:2]).shape == (2, 32)
    assert model.max_seq_length == 64
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "out").config.pad_token_id == tokenizer.pad_token_id

    evaluation = ["pretrain", str(recipe), "--evaluate", str(tmp_path / "out")]
    assert main([*evaluation, "--json", str(tmp_path / "figures.json")]) == 0  # which replaces its own figures
    assert "Always the commonest token" in capsys.readouterr().out
    assert main([*evaluation, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "figures.json").read_text())
    assert main(["pretrain", str(recipe)]) == 2
    assert "already holds a run. Continue it with --resume" in capsys.readouterr().err
    assert main(["pretrain", str(recipe), "--resume", "--set", "masking.share=0.2"]) == 2
    error = capsys.readouterr().err
    assert "recipe.masking.share" in error
    assert "--from-stage" not in error


ALIBI = """encoder={attn_implementation: blockwise, config: {model_type: alibi_bert, num_hidden_layers: 2, hidden_size: 24,
num_attention_heads: 3, intermediate_size: 32, attention_probs_dropout_prob: 0.1}}"""


@pytest.mark.parametrize(
    "changes",
    [[], ["streaming=true", "buffer=20", "device_batch=8"], [ALIBI, "packing=true", "batch=8"]],
    ids=["kept", "streamed", "alibi"],
)
def test_a_run_that_was_stopped_ends_as_another(twin_recipe, tmp_path, changes, monkeypatch):
    """Twelve steps of 16 rows are more than three passes over 60 texts; the run stops behind its checkpoint at step 10."""
    changes = [*changes, "evaluation=null"]
    pretrain(twin_recipe, overrides=changes)
    undisturbed = weights(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "out-run")

    monkeypatch.setattr(TrainerCallback, "on_step_begin", stop_at_step_11)
    with pytest.raises(KeyboardInterrupt):
        pretrain(twin_recipe, overrides=changes)
    monkeypatch.undo()
    assert (tmp_path / "out-run" / "checkpoints" / "checkpoint-10").is_dir()
    pretrain(twin_recipe, overrides=changes, resume=True)
    resumed = weights(tmp_path / "out")
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, documents, tokenizers):
    """A folder with a finished run of pretraining."""
    folder = tmp_path_factory.mktemp("pretrained")
    Dataset.from_dict({"text": documents}).to_parquet(folder / "texts.parquet")
    tokenizers["wordpiece"].save_pretrained(folder / "tokenizer")
    content = RECIPE.format(folder=folder).replace(
        "{train: wordpiece, vocab_size: 300}", f"{{model: {folder}/tokenizer}}"
    )
    (folder / "recipe.yaml").write_text(content)
    changes = ["evaluation=null", "steps=2"]
    pretrain(folder / "recipe.yaml", overrides=changes)
    return folder, changes


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "file",
    [
        "out-run/model/model.safetensors",
        "out-run/corpus/*.arrow",
        "out-run/recipe.yaml",
        "out-run/results.json",
        "out/tokenizer.json",
    ],
)
def test_damage_is_found(file, pretrained, tmp_path):
    folder = shutil.copytree(pretrained[0], tmp_path / "copy")
    assert verify(folder / "out-run").findings == verify(folder / "out").findings == []
    (damaged,) = folder.glob(file)
    flip(damaged)
    part = folder / file.partition("/")[0]
    (finding,) = verify(part).findings
    assert finding.file == damaged.relative_to(part).as_posix()
    assert "--from-stage" not in finding.remedy  # which pretraining has not


def test_a_damaged_model_is_not_given_out(pretrained):
    folder, changes = pretrained
    weights = folder / "out-run/model/model.safetensors"
    kept = weights.read_bytes()
    flip(weights)
    try:
        with pytest.raises(
            ValueError, match=r"The model of stage 1 is damaged: in .*model.safetensors.*or pretrain again"
        ):
            pretrain(folder / "recipe.yaml", overrides=changes, resume=True)
        assert (folder / "out/model.safetensors").read_bytes() == kept
    finally:
        weights.write_bytes(kept)


def test_what_is_damaged_under_a_run_is_made_again_or_told(pretrained, tmp_path, monkeypatch):
    folder, changes = pretrained
    expected = weights(folder / "out")
    changes = [*changes, f"output={tmp_path}/out"]
    with monkeypatch.context() as patch:
        patch.setattr(RunState, "finish", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pretrain(folder / "recipe.yaml", overrides=changes)
    work = tmp_path / "out-run"
    (corpus,) = work.glob("corpus/*.arrow")
    flip(corpus)
    (corpus.parent / f"{corpus.name}.7.tmp").touch()  # of a process that was killed
    flip(work / "tokenizer/tokenizer.json")
    assert "tokenizer" in [finding.file for finding in verify(work).findings]
    with pytest.raises(ValueError, match=r"The tokenizer .* is damaged \(tokenizer.json: .* pretrain again"):
        pretrain(folder / "recipe.yaml", overrides=changes, resume=True)
    flip(work / "tokenizer/tokenizer.json")
    pretrain(folder / "recipe.yaml", overrides=changes, resume=True)
    assert sorted(path.suffix for path in (work / "corpus").iterdir()) == [".arrow", ".sha256"]
    assert verify(work).findings == []
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "out").items())


def stop_at_step_11(self, args, state, control, **parts):
    if state.global_step == 11:
        raise KeyboardInterrupt


def test_accumulated_steps_are_whole_ones(twin_recipe, tmp_path):
    """Rows of unlike length in unlike parts: the loss is the mean over the tokens of the step, however it is cut."""
    ends = []
    changes = ["steps=2", "evaluation=null", "encoder.config.hidden_dropout_prob=0", "arguments.optim=sgd"]
    changes += ["encoder.config.attention_probs_dropout_prob=0"]
    for rows in (16, 4):
        pretrain(twin_recipe, overrides=[*changes, f"device_batch={rows}"])
        ends.append(weights(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out-run")
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], atol=1e-6, rtol=1e-5)


# torch.compile imports parts of torch that warn of themselves.
@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
def test_a_compiled_encoder_learns_the_same(twin_recipe, tmp_path, monkeypatch):
    """With the attention that is meant for it, by the back end that needs no compiler; rows are of several lengths."""
    original, compiled, ends = torch.compile, [], []

    def compile(*given, **how):
        compiled.append(how["backend"])
        return original(*given, **how)

    monkeypatch.setattr(torch, "compile", compile)
    encoder = ALIBI.replace("blockwise", "sdpa").replace(
        "attention_probs_dropout_prob: 0.1", "hidden_dropout_prob: 0.0"
    )
    changes = [encoder, "steps=2", "evaluation=null", "arguments.optim=sgd", "learning_rate=0.1"]
    for more in ([], ["arguments.torch_compile=true", "arguments.torch_compile_backend=aot_eager"]):
        pretrain(twin_recipe, overrides=[*changes, *more])
        ends.append(weights(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out-run")
    assert compiled == ["aot_eager"]
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], atol=1e-5, rtol=1e-4)


def test_every_mistake_with_its_line(recipe, tmp_path, capsys):
    text = recipe.read_text().replace("max_length: 32", "max_length: 128").replace("steps: 12", "step: 12")
    text = text.replace("num_hidden_layers: 1", "layers: 1").replace("lengths: [16, 32, 64]", "lengths: [16, 128]")
    text += "masking: {replace: {mask: 0.8, random: 0.3, keep: 0.1}}\nstreaming: maybe\n"
    recipe.write_text(text.replace("save_steps: 5", "per_device_train_batch_size: 5"))
    assert main(["pretrain", str(recipe)]) == 2
    said = capsys.readouterr().err
    for line, words in (
        (3, "encoder.config.layers: unknown field of BertConfig"),
        (7, "max_length: the encoder takes at most 64 tokens, got 128"),
        (10, "step: unknown field; did you mean 'steps'?"),
        (11, "arguments.per_device_train_batch_size: set the recipe's batch and device_batch instead"),
        (12, "evaluation.lengths[1]: the encoder takes at most 64 tokens, got 128; leave it out"),
        (13, "masking.replace: the shares of mask, random, keep must add up to 1, got 1.2"),
        (14, "streaming: expected true or false, got the text 'maybe'"),
    ):
        assert f"{recipe}:{line}: {words}" in said
    assert main(["pretrain", str(recipe), "--check"]) == 2
    assert not (tmp_path / "out-run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("encoder={model: x, config: {model_type: bert}}", "only one of model and config can be given"),
        ("encoder.config={model_type: clip}", "transformers has no masked-language model of the type 'clip'"),
        ("tokenizer={}", "one of model or train must be given"),
        ("tokenizer={train: bytes, lowercase: false}", "means nothing for a byte-level tokenizer"),
        ("texts.0.roles={text: query}", "means nothing for pretraining; remove it"),
        ("texts.0.columns=[txt]", "there is no such column; did you mean 'text'?"),
        ("device_batch=5", "must be a multiple of device_batch"),
        ("epochs=2", "steps and epochs are both given"),
        ("steps=null", "says not how long to train"),
        ("arguments={lr_scheduler_kwargs: {nope: 1}}", "got an unexpected keyword argument 'nope'"),
        ("arguments={eval_strategy: steps, metric_for_best_model: acuracy}", "did you mean 'accuracy'?"),
        ("buffer=5", "means nothing for a corpus that is not streamed"),
        ("output={folder}/recipe.yaml", "is a file; name a folder"),
        ("output={folder}", "', which is no export's; move that away, or name a new folder"),
    ],
)
def test_contradictions(recipe, tmp_path, change, words):
    problems = check_pretraining(recipe, [change.replace("{folder}", str(tmp_path))])
    assert words in "\n".join(problem.message for problem in problems)


OF_PRETRAINING = "is one of pretraining; st-distill pretrain takes it, and looks at it alone with --check"
OF_DISTILLATION = "is one of distillation or pairs; st-distill run takes it, and st-distill check looks at it alone"


@pytest.mark.parametrize(
    ("command", "given", "said"),
    [
        (["check"], "jina-2-small", f"the recipe 'jina-2-small' {OF_PRETRAINING}"),
        (["run"], "jina-2-large", f"the recipe 'jina-2-large' {OF_PRETRAINING}"),
        (["check"], "jina-2-smal", "is no file; did you mean 'jina-2-small'?"),
        (["check"], "recipe.yaml", f"recipe.yaml:2: encoder: the recipe {OF_PRETRAINING}"),
        (["run"], "preset: jina-2-base\noutput: out\n", f"1: preset: 'jina-2-base' {OF_PRETRAINING}"),
        (["pretrain"], "jina-2-pairs", f"the recipe 'jina-2-pairs' {OF_DISTILLATION}"),
        (["pretrain", "--check"], "output: out\nstudent: a\nstages: []\n", f"2: student: the recipe {OF_DISTILLATION}"),
        (["pretrain"], "output: out\npreset: jasper\n", f"2: preset: 'jasper' {OF_DISTILLATION}"),
    ],
)
def test_a_recipe_of_the_other_kind_is_one_mistake(command, given, said, recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "\n" in given:
        recipe.write_text(given)
        given = "recipe.yaml"
    assert main([command[0], given, *command[1:]]) == 2
    told = capsys.readouterr()
    lines = [line for line in (told.out + told.err).splitlines() if "mistake" not in line]
    assert len(lines) == 1
    assert lines[0].endswith(said)


def test_each_kind_is_known_by_fields_of_its_own():
    names = {kind: {field.name for field in fields(kind.recipe)} for kind in (DISTILLATION, PRETRAINING)}
    assert DISTILLATION.other is PRETRAINING.family
    assert PRETRAINING.other is DISTILLATION.family
    assert set(DISTILLATION.family.fields) <= names[DISTILLATION] - names[PRETRAINING]
    assert set(PRETRAINING.family.fields) <= names[PRETRAINING] - names[DISTILLATION]
    assert all(presets(kind) for kind in names)


TYPO = ALIBI.replace("attn_implementation: blockwise", "attn_implementation: blockwize")
FLEX = ALIBI.replace("attn_implementation: blockwise", "attn_implementation: flex_attention")


ATTENTION, CONFIG = "encoder.attn_implementation", "encoder.config"


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        ([TYPO], ATTENTION, "the ALiBi encoder has no 'blockwize'; leave it out, or set blockwise, sdpa, eager"),
        (["encoder.attn_implementation=blockwise"], ATTENTION, "blockwise is the ALiBi encoder's; leave it out"),
        (["encoder.attn_implementation=spda"], ATTENTION, "transformers has no attention 'spda'; did you mean 'sdpa'?"),
        ([FLEX], ATTENTION, "flex_attention has no backward pass on a CPU, and use_cpu asks for one; set sdpa"),
        ([FLEX], f"{CONFIG}.attention_probs_dropout_prob", "flex_attention has no dropout, got 0.1; set attention_pr"),
        (["encoder.config.vocab_size=150"], f"{CONFIG}.vocab_size", "has up to 200 tokens, got 150; leave it out"),
        (
            ["encoder.config.vocab_size=299", "tokenizer={train: wordpiece, vocab_size: 300}"],
            f"{CONFIG}.vocab_size",
            "has up to 300 tokens, got 299; leave it out",
        ),
    ],
)
def test_what_a_run_would_find_out_late(twin_recipe, changes, place, words):
    found = [problem.message for problem in check_pretraining(twin_recipe, changes) if problem.path == place]
    assert len(found) == 1
    assert words in found[0]
    with pytest.raises(RecipeError, match=place):
        pretrain(twin_recipe, overrides=changes)


def test_a_model_with_fewer_words_than_the_tokenizer(twin_recipe, tmp_path):
    config = BertConfig(vocab_size=150, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.save_pretrained(tmp_path / "small")
    changes = [f"encoder={{model: {tmp_path}/small, attn_implementation: flex_attention}}", "arguments.use_cpu=false"]
    found = {problem.path: problem.message for problem in check_pretraining(twin_recipe, changes)}
    assert "knows 150 tokens, got 200; take its own tokenizer" in found["tokenizer.model"]
    assert "flex_attention" in found["encoder.attn_implementation"]


def test_flex_attention_without_an_accelerator(twin_recipe, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    changes = [FLEX.replace("attention_probs_dropout_prob: 0.1", "attention_probs_dropout_prob: 0")]
    changes.append("arguments={disable_tqdm: true}")
    for here, level in ((False, "warning"), (True, "error")):
        (problem,) = check_pretraining(twin_recipe, changes, here=here)
        assert (problem.level, problem.path) == (level, "encoder.attn_implementation")
        assert "no backward pass on a CPU, and this machine has no accelerator" in problem.message


def test_a_trained_tokenizer_of_more_tokens_than_the_encoder_has(recipe):
    changes = ["tokenizer={train: wordpiece}", "encoder.config.vocab_size=30", "evaluation=null"]
    assert check_pretraining(recipe, changes) == []
    with pytest.raises(ValueError, match="must know the tokenizer's .* tokens. Got 30 as its vocab_size: leave it out"):
        pretrain(recipe, overrides=changes)


def test_a_sound_recipe_and_a_bad_source(recipe, tmp_path):
    assert check_pretraining(recipe) == []
    Dataset.from_dict({"text": ["a"], "title": ["b"]}).to_parquet(tmp_path / "texts.parquet")
    (problem,) = check_pretraining(recipe)
    assert "must have one column of documents. Got text, title: name one in 'columns'" in problem.message
    with pytest.raises(RecipeError, match="one column of documents"):
        pretrain(recipe)


def test_documents_shorter_than_the_evaluation(recipe):
    with pytest.raises(ValueError, match="documents must have 64 tokens, the greatest of its lengths. Got 1 documents"):
        pretrain(recipe, overrides=["evaluation.texts={data: [a short one]}"])


def test_what_cannot_be_measured_is_told_before(recipe, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    config = {"model_type": "bert", "position_embedding_type": "alibi", "feed_forward_type": "geglu"}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    assert main(["pretrain", str(recipe), "--evaluate", str(tmp_path / "other")]) == 2
    assert "holds an ALiBi BERT in the published layout" in capsys.readouterr().err
    BertConfig(max_position_embeddings=32).save_pretrained(tmp_path / "other")
    assert main(["pretrain", str(recipe), "--evaluate", str(tmp_path / "other")]) == 2
    told = f"must be at most the 32 tokens that '{tmp_path / 'other'}' takes. Got 64 instead: give --set"
    assert told in capsys.readouterr().err


def test_what_has_no_head_or_is_not_there_is_not_measured(twin_recipe, tmp_path, tokenizers, capsys):
    """An encoder alone would be measured with a random head, and a folder that is not there is none of the hub's."""
    words = ["pretrain", str(twin_recipe), "--evaluate"]
    BertForMaskedLM(tiny_config()).bert.save_pretrained(tmp_path / "encoder")
    tokenizers["wordpiece"].save_pretrained(tmp_path / "encoder")
    assert main([*words, str(tmp_path / "encoder")]) == 2
    told = (
        f"The weights of '{tmp_path / 'encoder'}' must be those of a masked-language model, BertForMaskedLM. They lack "
    )
    error = capsys.readouterr().err
    assert told in error
    assert "'cls.predictions." in error
    assert main([*words, str(tmp_path / "encodr")]) == 2
    told = f"cannot be loaded: there is no folder '{tmp_path}/encodr'; did you mean '{tmp_path}/encoder'?\n"
    assert capsys.readouterr().err.endswith(told)
    assert main([*words, "no/model"]) == 2
    assert "cannot be loaded: 'no/model' is not in the local cache, and the hub is switched" in capsys.readouterr().err


def test_the_kernel_is_that_of_the_recipes_own_model(twin_recipe, tmp_path, tokenizers, monkeypatch):
    """A BERT knows nothing of the blockwise kernel, and an encoder of the recipe's kind is measured with it."""
    recipe = load_pretraining(twin_recipe, [ALIBI])
    BertForMaskedLM(tiny_config()).save_pretrained(tmp_path / "bert")
    AlibiBertForMaskedLM(AlibiBertConfig(vocab_size=320, **SIZES)).save_pretrained(tmp_path / "alibi")
    monkeypatch.setattr(runner._Measuring, "at_all_lengths", lambda _, model: model.config._attn_implementation)
    kernels = {}
    for name in ("bert", "alibi"):
        tokenizers["wordpiece"].save_pretrained(tmp_path / name)
        kernels[name] = evaluate_encoder(tmp_path / name, recipe)
    assert kernels == {"bert": "sdpa", "alibi": "blockwise"}
    # One that goes on from a model is of that model's kind.
    recipe = load_pretraining(twin_recipe, [f"encoder={{model: {tmp_path}/bert, attn_implementation: eager}}"])
    assert [evaluate_encoder(tmp_path / name, recipe) for name in kernels] == ["eager", "blockwise"]


def test_half_precision_of_a_model_at_its_greatest_length(twin_recipe, tmp_path):
    """Rows are padded to eights for it, not beyond what the encoder takes; a half checkpoint learns in single precision."""
    BertForMaskedLM(tiny_config(max_position_embeddings=20)).to(torch.float16).save_pretrained(tmp_path / "half")
    changes = [f"encoder={{model: {tmp_path}/half}}", "max_length=20", "evaluation=null", "steps=2"]
    result = pretrain(twin_recipe, overrides=[*changes, "arguments.bf16=true"])
    assert {value.dtype for value in weights(result.output).values()} == {torch.float32}


def test_an_encoder_that_was_changed_in_its_folder(twin_recipe, tmp_path):
    """What goes on, or is finished, would be called that of the new one."""
    changes = [f"encoder={{model: {tmp_path}/old}}", "max_length=20", "evaluation=null", "steps=2"]
    for size in (0.02, 0.04):
        torch.manual_seed(0)
        BertForMaskedLM(tiny_config(max_position_embeddings=20, initializer_range=size)).save_pretrained(
            tmp_path / "old"
        )
        if size == 0.02:
            pretrain(twin_recipe, overrides=changes)
            pretrain(twin_recipe, overrides=changes, resume=True)
    with pytest.raises(ValueError, match=r"other fields .* data.encoder \(its content has changed\)"):
        pretrain(twin_recipe, overrides=changes, resume=True)


def test_the_rate_falls_to_nothing_in_a_line(tmp_path):
    """A tenth of the steps up to the peak, and then down, as TrainingArguments and its scheduler understand the preset."""
    given = load_pretraining("jina-2-base", ["texts={path: x}", "steps=100", "arguments.warmup_steps=10"])
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given.training_arguments() | {"bf16": False})
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    schedule = get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(100), args.max_steps)
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[::10] == pytest.approx([0, *(6e-4 * ninths / 9 for ninths in range(9, 0, -1))])


@pytest.mark.parametrize(
    ("preset", "rate", "layers", "width", "heads"),
    [("small", 1e-3, 4, 512, 8), ("base", 6e-4, 12, 768, 12), ("large", 4e-4, 24, 1024, 16)],
)
def test_the_published_schedule(preset, rate, layers, width, heads):
    """REFERENCES: arXiv 2310.19923, section on masked-LM pretraining, and its table of sizes."""
    recipe = load_pretraining(f"jina-2-{preset}", ["texts={path: x}", "device_batch=64"])
    config = recipe.encoder.config
    assert config.items() >= published_sizes[preset].items()
    assert (config["hidden_dropout_prob"], config["attention_probs_dropout_prob"]) == (0.1, 0.1)
    assert recipe.encoder.attn_implementation == "sdpa"  # rows are short, and on a GPU
    assert (config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]) == (layers, width, heads)
    arguments = recipe.training_arguments(processes=8)
    assert arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] * 8 == 4096
    assert (arguments["learning_rate"], arguments["max_steps"], arguments["warmup_steps"]) == (rate, 100_000, 10_000)
    betas_and_more = [arguments[name] for name in ("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay")]
    assert betas_and_more == [0.9, 0.98, 1e-6, 0.01]
    further = [arguments[name] for name in ("optim", "lr_scheduler_type", "bf16")]
    assert further == ["adamw_torch", "linear", True]
    assert (recipe.max_length, recipe.packing, recipe.masking.share) == (512, False, 0.3)


@pytest.fixture(scope="module")
def tiny_masked_bert():
    torch.manual_seed(0)
    return BertForMaskedLM(tiny_config()).eval()


def test_predictions_where_they_are_asked_for(tiny_masked_bert):
    inputs = {"input_ids": torch.randint(5, 300, (3, 10)), "attention_mask": torch.ones(3, 10, dtype=torch.long)}
    labels = torch.full((3, 10), IGNORED)
    labels[0, 3], labels[2, 9] = 7, 8
    places, targets = places_of(labels, IGNORED)
    assert places.tolist() == [3, 29]
    whole = tiny_masked_bert(**inputs, labels=labels)
    chosen = predict(tiny_masked_bert, inputs, places, core=tiny_masked_bert)
    torch.testing.assert_close(chosen, predict(tiny_masked_bert, inputs, places))
    torch.testing.assert_close(functional.cross_entropy(chosen, targets), whole.loss)
    assert tiny_masked_bert(**inputs).logits.shape == (3, 10, 320)


def test_a_model_that_knows_one_token(tiny_masked_bert, wordpiece, documents):
    """Its accuracy is that token's share of the masked ones, at every length."""
    held_out = held_out_documents([" ".join(documents)], wordpiece, length=258)
    token = int(held_out[0].input_ids[held_out[0].words >= 0][0])
    masker = WordMasker(mask_id=4, ordinary_ids=wordpiece.ordinary_ids, share=1.0)
    with torch.no_grad():
        tiny_masked_bert.cls.predictions.bias[token] += 1000
    try:
        results = masked_accuracy(tiny_masked_bert, wordpiece, masker, held_out, lengths=[66, 258], batch_tokens=132)
    finally:
        with torch.no_grad():
            tiny_masked_bert.cls.predictions.bias[token] -= 1000
    ids = held_out[0].input_ids[held_out[0].words >= 0]
    for length, pieces in ((66, 4), (258, 1)):
        figures = results["lengths"][str(length)]
        assert figures["accuracy"] == pytest.approx((ids == token).mean())
        assert (figures["masked"], figures["pieces"]) == (len(ids), pieces)
    assert 0 < results["unigram_entropy"] < torch.tensor(200.0).log()
    assert results["commonest"] >= (ids == token).mean()


def test_out_of_memory_names_the_length(tiny_masked_bert, wordpiece, documents, monkeypatch):
    def full(*args, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("st_distill.pretrain.evaluation.predict", full)
    masker = WordMasker(mask_id=4, ordinary_ids=wordpiece.ordinary_ids)
    held_out = held_out_documents([" ".join(documents)], wordpiece, length=64)
    with pytest.raises(MemoryError, match="1 texts of 64 tokens. It does not: lower the evaluation's batch_tokens"):
        masked_accuracy(tiny_masked_bert, wordpiece, masker, held_out, lengths=[64], batch_tokens=64)

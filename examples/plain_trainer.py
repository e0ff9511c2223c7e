"""The losses in a SentenceTransformerTrainer of your own: half of an encoder's layers learn from all of them.

    python examples/plain_trainer.py
    python examples/plain_trainer.py --teacher BAAI/bge-base-en-v1.5 --texts my-texts.txt --steps 2000

There is no recipe, no store and no export here: the labels are a column of the teacher's vectors, and the student is as
wide as its teacher, so that it needs no projection. Teachers are BERTs of any size.
"""

from __future__ import annotations

import argparse

import torch
from datasets import Dataset
from quickstart_data import minilm_folder
from sample import existing, paragraphs
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from st_distill import losses
from st_distill.evaluation import TeacherFidelityEvaluator

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", default=None, help="name or folder of a model; MiniLM from its package")
parser.add_argument("--texts", type=existing, default=None, help="file with a text in each line; Python's help")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--out", default="out/plain-trainer")
options = parser.parse_args()

texts = paragraphs(options.texts)
held_out, texts = texts[::10], [text for row, text in enumerate(texts) if row % 10]

teacher = SentenceTransformer(options.teacher or str(minilm_folder()))
dataset = Dataset.from_dict({"text": texts, "label": teacher.encode(texts).tolist()})

# Every other layer of a copy, the last one among them, because the pooling knows its output.
student = SentenceTransformer(options.teacher or str(minilm_folder()))
bert = student.transformers_model
bert.encoder.layer = torch.nn.ModuleList([*bert.encoder.layer[:-1:2], bert.encoder.layer[-1]])
bert.config.num_hidden_layers = len(bert.encoder.layer)

width = teacher.get_embedding_dimension()
dims = [width, width // 2, width // 4]
closeness = TeacherFidelityEvaluator(held_out, teacher.encode(held_out), dims=dims, write_csv=False)
before = closeness(student)

trainer = SentenceTransformerTrainer(
    model=student,
    args=SentenceTransformerTrainingArguments(
        output_dir=options.out,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        learning_rate=2e-4,
        warmup_steps=0.1,
        save_strategy="no",
        logging_steps=20,
    ),
    train_dataset=dataset,
    loss=losses.JasperDistill(student, dims=dims),
)
trainer.train()
student.save(options.out)

after = closeness(student)
for dim in dims:
    print(
        f"Spearman to the teacher at {dim}: {before[f'spearman_{dim}']:.3f} before, {after[f'spearman_{dim}']:.3f} after"
    )

"""A student without layers: a table of word vectors, whose mean is the embedding. It needs no GPU, and no patience.

    python examples/static_student.py
    python examples/static_student.py --teacher BAAI/bge-base-en-v1.5 --texts my-texts.txt --steps 5000

The table starts as the teacher's own input embeddings and learns from the teacher's vectors. What it gives up is order:
"dog bites man" and "man bites dog" are one.
"""

from __future__ import annotations

import argparse
import time

from datasets import Dataset
from quickstart_data import minilm_folder
from sample import existing, paragraphs
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from st_distill import export, losses
from st_distill.evaluation import TeacherFidelityEvaluator

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", default=None, help="name or folder of a model; MiniLM from its package")
parser.add_argument("--texts", type=existing, default=None, help="file with a text in each line; Python's help")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--out", default="out/static-student")
options = parser.parse_args()

texts = paragraphs(options.texts)
held_out, texts = texts[::10], [text for row, text in enumerate(texts) if row % 10]
teacher = SentenceTransformer(options.teacher or str(minilm_folder()))
dataset = Dataset.from_dict({"text": texts, "label": teacher.encode(texts).tolist()})

words = teacher.transformers_model.get_input_embeddings().weight.detach()
student = SentenceTransformer(modules=[StaticEmbedding(teacher.tokenizer, embedding_weights=words.cpu().numpy())])

width = student.get_embedding_dimension()
dims = [width, width // 2, width // 4]
closeness = TeacherFidelityEvaluator(held_out, teacher.encode(held_out), dims=dims, write_csv=False)
before = closeness(student)

trainer = SentenceTransformerTrainer(
    model=student,
    args=SentenceTransformerTrainingArguments(
        output_dir=options.out,
        max_steps=options.steps,
        per_device_train_batch_size=128,
        learning_rate=1e-2,  # a table is not as delicate as layers are
        warmup_steps=0.1,
        save_strategy="no",
        logging_steps=20,
    ),
    train_dataset=dataset,
    loss=losses.JasperDistill(student, dims=dims, weights={"similarity": 200, "triplet": 20}),
)
trainer.train()
student = export(student, options.out)

after = closeness(student)
for dim in dims:
    print(
        f"Spearman to the teacher at {dim}: {before[f'spearman_{dim}']:.3f} before, {after[f'spearman_{dim}']:.3f} after"
    )
for name, model in (("teacher", teacher), ("student", student)):
    start = time.perf_counter()
    model.encode(held_out)
    print(f"{name}: {len(held_out) / (time.perf_counter() - start):,.0f} texts a second")

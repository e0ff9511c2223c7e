"""One vector for a long document: an ALiBi student that reads 8192 tokens, and a teacher that reads 256.

    python examples/long_documents.py
    python examples/long_documents.py --student out/encoder --teacher BAAI/bge-base-en-v1.5 --steps 5000

The teacher reads a document in pieces, and the label is the mean of its vectors. The student learns from documents cut
at 512 tokens, and then reads whole ones: its attention falls with distance and knows no positions. Without --student
it is a small encoder of random weights; `st-distill pretrain` makes a better one.
"""

from __future__ import annotations

import argparse

import numpy as np
from datasets import Dataset
from quickstart_data import minilm_folder
from sample import documents, existing, paragraphs
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from st_distill import Teacher, TeacherStore, losses
from st_distill.evaluation import TeacherFidelityEvaluator
from st_distill.modules import AlibiBertConfig, AlibiBertModel

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", default=None, help="name or folder of a model; MiniLM from its package")
parser.add_argument("--student", default=None, help="folder of an ALiBi encoder; random weights")
parser.add_argument("--texts", type=existing, default=None, help="file with a document in each line; Python's help")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--out", default="out/long-documents")
options = parser.parse_args()

reader = SentenceTransformer(options.teacher or str(minilm_folder()))


def read_in_pieces(texts: list[str], words: int = 150) -> np.ndarray:
    """(texts, dimension): of each document the mean of its pieces' vectors."""
    means = []
    for text in texts:
        parts = text.split()
        pieces = [" ".join(parts[start : start + words]) for start in range(0, len(parts), words)]
        means.append(reader.encode(pieces).mean(axis=0))
    return np.stack(means)


long = paragraphs(options.texts) if options.texts else documents()
held_out, learnt = long[::4], [text for row, text in enumerate(long) if row % 4]
texts = list(dict.fromkeys([*learnt, *(paragraphs() if options.texts is None else [])]))
teacher = Teacher(read_in_pieces, name="in-pieces", revision="1")
store = TeacherStore.create(f"{options.out}-teacher", [*texts, *held_out], [teacher])
dataset = store.add_labels(Dataset.from_dict({"text": texts}), "text")

if options.student is None:
    config = AlibiBertConfig(
        vocab_size=len(reader.tokenizer),
        hidden_size=store.dimension,
        num_hidden_layers=2,
        num_attention_heads=store.dimension // 32,
        intermediate_size=2 * store.dimension,
    )
    options.student = f"{options.out}-start"
    AlibiBertModel(config).save_pretrained(options.student)
    reader.tokenizer.save_pretrained(options.student)
encoder = Transformer(options.student)
student = SentenceTransformer(modules=[encoder, Pooling(encoder.get_embedding_dimension(), pooling_mode="mean")])
student.max_seq_length = 512

trainer = SentenceTransformerTrainer(
    model=student,
    args=SentenceTransformerTrainingArguments(
        options.out, max_steps=options.steps, per_device_train_batch_size=16, learning_rate=5e-4, save_strategy="no"
    ),
    train_dataset=dataset,
    loss=losses.JasperDistill(student, teacher=store, weights={"similarity": 200, "triplet": 20}),
)
trainer.train()
student.save(options.out)

closeness = TeacherFidelityEvaluator(held_out, store.gather(store.ids(held_out)), neighbours=3, write_csv=False)
for length in (128, 512, 8192):
    student.max_seq_length = length
    score = closeness(student)[closeness.primary_metric]
    print(f"Spearman to the teacher, of each document {length} tokens: {score:.3f}")

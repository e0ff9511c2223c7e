"""A student of vectors that were bought: a file of texts and vectors, and no teacher's weights.

    python examples/api_vectors.py
    python examples/api_vectors.py --vectors my-vectors.parquet --student microsoft/MiniLM-L12-H384-uncased

The file is parquet with the columns text and embedding. Without one, MiniLM stands for the API and writes it. Every
tenth text is held back, and says at the end how close the student comes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset
from quickstart_data import minilm_folder
from sample import existing, paragraphs
from sentence_transformers import SentenceTransformer

from st_distill import Recipe, run
from st_distill.report import report

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--vectors", type=existing, default=None, help="parquet file with the columns text and embedding")
parser.add_argument("--student", default=None, help="name or folder of an encoder; MiniLM from its package")
parser.add_argument("--layers", type=int, nargs="*", default=[0, 2, 5], help="of the student's layers, those to keep")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--out", default="out/api-vectors")
options = parser.parse_args()

student = options.student or str(minilm_folder())
file = Path(options.vectors or f"{options.out}-data/vectors.parquet")
if options.vectors is None:
    texts = paragraphs()
    file.parent.mkdir(parents=True, exist_ok=True)
    bought = Dataset.from_dict({"text": texts, "embedding": SentenceTransformer(student).encode(texts).tolist()})
    bought.to_parquet(file)

texts = Dataset.from_parquet(str(file))["text"][:]
width = len(Dataset.from_parquet(str(file))[0]["embedding"])

result = run(
    Recipe(
        output=options.out,
        student={"model": student, "layers": options.layers or None},
        # The whole file is one teacher; it is asked for the texts below alone.
        teachers=[{"name": "api", "vectors": str(file), "column": "embedding", "text_column": "text"}],
        texts=[{"data": [text for row, text in enumerate(texts) if row % 10]}],
        projection={"dims": [width, width // 2, width // 4]},
        stages=[
            {"train": "projection", "steps": options.steps // 2, "batch": 64},
            {"train": "all", "steps": options.steps, "batch": 64},
        ],
        evaluation={"texts": {"data": texts[::10]}},
    )
)
print(report(result.results))
print(f"The model is in {result.output}.")

"""Two teachers at once: one for meaning, one for spelling, and a weight that says how much the second one counts.

    python examples/two_teachers.py
    python examples/two_teachers.py --weight 1.0

The first teacher is a model, the second one a function: which pieces of words of three letters occur in a text. Both
are asked once; the store keeps their vectors, and other weights need no new ones.
"""

from __future__ import annotations

import argparse

from quickstart_data import minilm_folder
from sample import existing, paragraphs, weight
from sentence_transformers import SentenceTransformer
from sklearn.feature_extraction.text import HashingVectorizer

from st_distill import Recipe, Teacher, TeacherStore, run
from st_distill.evaluation import TeacherFidelityEvaluator

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", default=None, help="name or folder of a model; MiniLM from its package")
parser.add_argument("--texts", type=existing, default=None, help="file with a text in each line; Python's help")
parser.add_argument("--weight", type=weight, default=0.5, help="of the spelling, beside 1 of the meaning")
parser.add_argument("--layers", type=int, nargs="*", default=[0, 2, 5], help="of the model's layers, the student's")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--out", default="out/two-teachers")
options = parser.parse_args()

spelling = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 3), n_features=512, alternate_sign=False)


def spell(texts: list[str]):
    """(texts, 512): how often each piece of three letters occurs, the pieces shared among 512 numbers by chance."""
    return spelling.transform(texts).toarray()


texts = paragraphs(options.texts)
held_out, texts = texts[::10], [text for row, text in enumerate(texts) if row % 10]
model = options.teacher or str(minilm_folder())
width = SentenceTransformer(model).get_embedding_dimension()

run(
    Recipe(
        output=options.out,
        student={"model": model, "layers": options.layers or None},
        teachers=[
            {"name": "meaning", "model": model},
            {"name": "spelling", "teacher": spell, "revision": "1", "weight": options.weight},
        ],
        texts=[{"data": texts}],
        projection={"dims": [width, width // 4]},
        stages=[
            {"train": "projection", "steps": options.steps // 2, "batch": 64},
            {"train": "all", "steps": options.steps, "batch": 64},
        ],
    )
)

# The store in the run's folder is asked again, for texts that it did not train on: only these are embedded now.
teachers = [Teacher(model, name="meaning"), Teacher(spell, name="spelling", revision="1")]
store = TeacherStore.create(f"{options.out}-run/teachers", held_out, teachers)
student = SentenceTransformer(options.out)
for name in store.teachers:
    vectors = store.gather(store.ids(held_out), teachers=[name])
    scores = TeacherFidelityEvaluator(held_out, vectors, write_csv=False)(student)
    print(f"Spearman to {name}: {scores[f'spearman_{width}']:.3f}")

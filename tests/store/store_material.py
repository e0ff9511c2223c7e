"""What the tests of the store share: a teacher that counts, and stores of a few texts."""

from __future__ import annotations

import hashlib

import numpy as np

from st_distill import Teacher, TeacherStore


class Counting:
    """A teacher that remembers what it was asked, and gives each text the vector that a table says."""

    def __init__(self, vectors=None, *, fail_at=None):
        self.vectors = vectors
        self.fail_at = fail_at
        self.asked = []

    def __call__(self, texts):
        for text in texts:
            if len(self.asked) == self.fail_at:
                raise RuntimeError("the teacher is gone")
            self.asked.append(text)
        return np.array([self.vector(text) for text in texts], dtype=np.float32)

    def vector(self, text):
        if self.vectors is not None:
            return self.vectors[text]
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4]
        return [byte - 127.5 for byte in digest]

    def unit(self, text):
        vector = np.array(self.vector(text), dtype=np.float64)
        return vector / np.linalg.norm(vector)


def teacher_of(function, name="first", **options):
    return Teacher(function, **({"name": name, "revision": "1", "batch_size": 1} | options))


def create(path, texts, *functions, **options):
    teachers = [teacher_of(function, name) for function, name in zip(functions, ("first", "second", "third"))]
    return TeacherStore.create(path, texts, teachers, show_progress=False, **options)


def cosines_with(store, name, texts, function, **options):
    vectors = store.gather(store.ids(texts, **options), teachers=[name]).numpy()
    return (vectors * np.stack([function.unit(text) for text in texts])).sum(axis=1)


TEXTS = [f"text {number}" for number in range(10)]


def two_teachers(path, **options):
    """Rows 0 to 3 of two teachers, with vectors whose units are known: (1, 0) and (0.6, 0.8) and their like."""
    first = Counting({"a": [5.0, 0.0], "b": [0.0, 0.1], "c": [0.0, 0.0], "d": [0.0, 0.0]})
    second = Counting({"a": [3.0, 4.0, 0.0], "b": [0.0, 0.0, 1e30], "c": [0.0, 1e-30, 0.0], "d": [0.0, 0.0, 0.0]})
    return create(path, ["a", "b", "c", "d"], first, second, **options)

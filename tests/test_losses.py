from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import InputExample, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from torch.utils.data import DataLoader

from st_distill import Teacher, TeacherStore, functional, losses
from st_distill.modules import MatryoshkaProjection
from st_distill.modules.rotation import random_rotation

TEACHER_WIDTH = 48
SINGLE = [losses.CosineDistill, losses.SimilarityDistill, losses.TripletDistill]


class Rows:
    """Teacher vectors in memory, by row number, in place of a TeacherStore."""

    def __init__(self, count: int = 16, dimension: int = TEACHER_WIDTH) -> None:
        self.vectors = torch.randn(count, dimension, generator=torch.Generator().manual_seed(5))
        self.dimension = dimension

    def gather(self, ids):
        return functional.normalize(self.vectors[ids])


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def student(make_student):
    return make_student(MatryoshkaProjection(32, [24, 8], rotation=random_rotation(TEACHER_WIDTH, 24))).eval()


def features(student, *columns):
    return [student.preprocess(list(column)) for column in columns]


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(first, second, tolerance: float = 1e-5):
    assert first.keys() == second.keys()
    assert first
    scale = max(value.abs().max() for value in first.values())
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=tolerance * float(scale), msg=name)


class TestValues:
    @pytest.mark.parametrize("loss_class", SINGLE)
    def test_vectors_and_row_numbers_agree(self, loss_class, student, rows, sentences):
        ids = torch.tensor([3, 1, 2, 0, 7, 3])
        loss = loss_class(student, teacher=rows)
        by_row = loss(features(student, sentences[:6]), ids)
        by_vector = loss(features(student, sentences[:6]), rows.vectors[ids])
        assert by_row.item() == pytest.approx(by_vector.item(), rel=1e-5)

    def test_terms_are_the_objectives_of_the_embeddings(self, student, rows, sentences):
        ids = torch.arange(8)
        teacher = rows.gather(ids)
        embeddings = student.encode(sentences[:8], convert_to_tensor=True)
        weights = {"cosine": 2.0, "similarity": 3.0, "triplet": 5.0}
        loss = losses.JasperDistill(student, teacher=rows, dims=[24, 8, 5], weights=weights, margin=0.1)
        terms = loss(features(student, sentences[:8]), ids)
        aligned = teacher @ student[2].rotation
        assert terms["cosine"].item() == pytest.approx(
            2 * functional.cosine_distill(embeddings, aligned).item(), rel=1e-4
        )
        for name, objective, options in [
            ("similarity", functional.similarity_distill, ()),
            ("triplet", functional.triplet_distill, (0.1,)),
        ]:
            mean = sum(objective(embeddings[:, :dim], teacher, *options).item() for dim in (24, 8, 5)) / 3
            assert terms[name].item() == pytest.approx(weights[name] * mean, rel=1e-4)

    def test_bits_are_averaged_with_the_vectors(self, student, rows, sentences):
        ids = torch.arange(8)
        weights = {"similarity": 1.0, "triplet": 1.0}
        loss = losses.JasperDistill(student, teacher=rows, dims=[24, 8], weights=weights, bits=True)
        terms = loss(features(student, sentences[:8]), ids)
        embedding = student(features(student, sentences[:8])[0])["sentence_embedding"]
        parts = [embedding, embedding[:, :8]]
        # The signs' similarities are those of some vectors, to which the objectives apply as they are.
        target = functional.similarities(rows.vectors[ids], exact_ties=True)
        matrices = [functional.similarities(part) for part in parts] + [
            functional.bit_similarities(part) for part in parts
        ]
        wanted = torch.stack([(matrix - target).square().mean() for matrix in matrices]).mean()
        assert terms["similarity"].item() == pytest.approx(wanted.item(), rel=1e-5)
        ranking = functional.PairRanking(functional.pairs(target))
        hinges = [functional.triplet_term(functional.pairs(matrix), ranking, 0.015) for matrix in matrices]
        assert terms["triplet"].item() == pytest.approx(torch.stack(hinges).mean().item(), rel=1e-5)
        assert loss.get_config_dict()["bits"] is True

    def test_weights_default_to_the_paper(self, student):
        assert losses.JasperDistill(student).weights == {"cosine": 10, "similarity": 200, "triplet": 20}
        assert losses.JasperDistill(student).margin == 0.015

    @pytest.mark.parametrize(
        ("loss_class", "expected"),
        [
            (losses.CosineDistill, {}),
            (losses.SimilarityDistill, {}),
            (losses.TripletDistill, {"margin": 0.015}),
            (losses.JasperDistill, {"margin": 0.015, "weights": {"cosine": 10, "similarity": 200, "triplet": 20}}),
        ],
    )
    def test_a_card_names_what_was_asked_for(self, loss_class, expected, student):
        assert loss_class(student).get_config_dict() == expected
        given = {"dims": [24, 8], "match_dims": True, "gather_across_devices": True, "length_parts": 2}
        asked = {**expected, **given}
        if loss_class is losses.JasperDistill:
            asked["cosine_dims"] = [24, 8]  # which match_dims takes from the others
        assert loss_class(student, **given).get_config_dict() == asked

    def test_a_term_left_out_is_not_computed(self, student, rows, sentences):
        loss = losses.JasperDistill(student, teacher=rows, weights={"cosine": 1.0, "triplet": 0.0})
        assert list(loss(features(student, sentences[:4]), torch.arange(4))) == ["cosine"]

    @pytest.mark.parametrize("weights", [{"cosine": 1.0}, {"cosine": 1.0, "triplet": 1.0}, {"similarity": 1.0}])
    def test_only_relations_need_the_rows_of_other_processes(self, weights, student, rows, sentences, monkeypatch):
        gathered = []
        for name in ("all_gather", "all_gather_with_grad"):
            monkeypatch.setattr(losses, name, lambda tensor: (gathered.append(tensor), tensor)[1])
        loss_list = [losses.JasperDistill(student, teacher=rows, weights=weights, gather_across_devices=True)]
        single = losses.CosineDistill if weights == {"cosine": 1.0} else losses.SimilarityDistill
        loss_list.append(single(student, teacher=rows, gather_across_devices=True))
        for loss in loss_list:
            loss(features(student, sentences[:4]), torch.arange(4))
        assert len(gathered) == (0 if weights == {"cosine": 1.0} else 4)

    def test_rotated_labels_start_low_after_a_ridge_start(self, student, sentences):
        """The cosine term knows the projection's random rotation, for vectors and for row numbers."""
        pooled = student.encode(sentences, output_value=None)
        pooled = torch.nn.functional.normalize(torch.stack([p["token_embeddings"].mean(0) for p in pooled]), dim=-1)
        rows = Rows()
        rows.vectors = pooled @ torch.randn(32, TEACHER_WIDTH, generator=torch.Generator().manual_seed(0))
        head = student[2]
        student[2] = torch.nn.Identity()
        inputs = student.encode(sentences, convert_to_tensor=True)
        student[2] = head
        loss = losses.CosineDistill(student, teacher=rows)
        ids = torch.arange(len(sentences))
        before = loss(features(student, sentences), ids).item()
        head.start_ridge([(inputs, rows.vectors)], penalty=1e-6)
        assert before > 0.7
        assert loss(features(student, sentences), ids).item() < 0.05
        assert loss(features(student, sentences), rows.vectors).item() < 0.05

    @pytest.mark.parametrize("loss_class", [*SINGLE, losses.JasperDistill])
    def test_several_columns_are_one_batch(self, loss_class, student, rows, sentences):
        loss = loss_class(student, teacher=rows)
        columns = sentences[:4], sentences[4:8]
        ids = torch.tensor([[0, 4], [1, 5], [2, 6], [3, 7]])

        def total(value):
            return sum(v.item() for v in value.values()) if isinstance(value, dict) else value.item()

        joint = total(loss(features(student, sentences[:8]), torch.arange(8)))
        for labels in (ids, rows.vectors[ids]):
            assert total(loss(features(student, *columns), labels)) == pytest.approx(joint, rel=1e-4)
        same = total(loss(features(student, sentences[:8]), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])))
        for labels in (ids[:, 0], rows.vectors[ids[:, 0]]):
            assert total(loss(features(student, *columns), labels)) == pytest.approx(same, rel=1e-4)

    def test_a_model_without_projection(self, make_student, sentences):
        student = make_student().eval()
        rows = Rows(dimension=32)
        terms = losses.JasperDistill(student, teacher=rows, dims=[32, 4])(
            features(student, sentences[:5]), torch.arange(5)
        )
        assert all(torch.isfinite(term) for term in terms.values())

    def test_a_batch_of_one_and_of_identical_texts(self, student, rows):
        loss = losses.JasperDistill(student, teacher=rows)
        for count in (1, 4):
            terms = loss(features(student, ["a cat"] * count), torch.zeros(count, dtype=torch.long))
            sum(terms.values()).backward()
            assert terms["triplet"].item() == 0
            assert all(torch.isfinite(g).all() for g in gradients(student).values())


class TestStore:
    """The losses read a TeacherStore's rows themselves: by the trainer, by model.fit, and with columns in roles."""

    @pytest.fixture
    def store(self, tmp_path, sentences, rows) -> TeacherStore:
        vectors = dict(zip(sentences, rows.vectors.numpy()))

        def embed(texts):
            return np.stack([vectors[text] for text in texts])

        return TeacherStore.create(
            tmp_path / "store",
            sentences,
            Teacher(embed, name="teacher", revision="1"),
            dtype="float32",
            show_progress=False,
        )

    def test_rows_of_the_store_are_its_vectors(self, store, student, rows, sentences):
        texts = [sentences[index] for index in (5, 0, 5, 9)]
        loss = losses.JasperDistill(student, teacher=store, dims=[24, 8])
        by_row = loss(features(student, texts), torch.from_numpy(store.ids(texts)))
        by_vector = loss(features(student, texts), rows.vectors[[5, 0, 5, 9]])
        for name, term in by_row.items():
            assert term.item() == pytest.approx(by_vector[name].item(), rel=1e-4)

    def test_labels_that_are_no_rows(self, store, student, sentences):
        loss = losses.CosineDistill(student, teacher=store.view(teachers=["teacher"]))
        with pytest.raises(ValueError, match="16"):
            loss(features(student, sentences[:2]), torch.tensor([3, 16]))

    def test_trains_in_the_trainer(self, store, student, sentences, tmp_path):
        dataset = store.add_labels(Dataset.from_dict({"text": sentences, "other": sentences[::-1]}), ["text", "other"])
        loss = losses.JasperDistill(student, teacher=store, dims=[24, 8], mini_batch_size=4)
        arguments = TestTraining().arguments(tmp_path, max_steps=2)
        trainer = SentenceTransformerTrainer(model=student, args=arguments, train_dataset=dataset, loss=loss)
        trainer.train()
        assert all(math.isfinite(entry["cosine"]) for entry in trainer.state.log_history if "cosine" in entry)


class TestHeads:
    @pytest.fixture
    def several(self, make_student):
        projection = MatryoshkaProjection(
            32, [24, 8], heads="independent", teacher_head=TEACHER_WIDTH, rotation=random_rotation(TEACHER_WIDTH, 24)
        )
        return make_student(projection).eval()

    def test_the_teachers_head_takes_the_cosine_and_every_head_the_relations(self, several, rows, sentences):
        ids, teacher = torch.arange(6), rows.gather(torch.arange(6))
        with several[2].all_heads():
            heads = several.encode(sentences[:6], convert_to_tensor=True)
        parts = {24: heads[:, :24], 8: heads[:, 24:32], TEACHER_WIDTH: heads[:, 32:]}
        weights = {"cosine": 1.0, "similarity": 1.0}
        loss = losses.JasperDistill(several, teacher=rows, dims=[24, 8], weights=weights)
        terms = loss(features(several, sentences[:6]), ids)
        assert terms["cosine"].item() == pytest.approx(
            functional.cosine_distill(parts[TEACHER_WIDTH], teacher).item(), rel=1e-4
        )
        similarity = sum(functional.similarity_distill(part, teacher).item() for part in parts.values()) / 3
        assert terms["similarity"].item() == pytest.approx(similarity, rel=1e-4)

    def test_matching_heads_with_itself_is_perfect(self, several, sentences):
        """Stage 4: the teacher is the student's own embedding of the caption, head by head, without rotation."""
        with several[2].all_heads():
            own = several.encode(sentences[:6], convert_to_tensor=True)
        loss = losses.JasperDistill(several, dims=[24, 8], match_dims=True, margin=0.0)
        assert loss.cosine_dims == [24, 8]
        for term in loss(features(several, sentences[:6]), own).values():
            assert term.item() == pytest.approx(0, abs=1e-5)

    def test_matching_prefixes_with_itself_is_perfect(self, student, sentences):
        own = student.encode(sentences[:6], convert_to_tensor=True)
        loss = losses.JasperDistill(student, dims=[24, 8], match_dims=True, margin=0.0)
        for term in loss(features(student, sentences[:6]), own).values():
            assert term.item() == pytest.approx(0, abs=1e-5)

    @pytest.mark.parametrize("loss_class", [losses.CosineDistill, losses.JasperDistill])
    def test_the_dimensions_of_the_cosine_weigh_alike_or_as_themselves(self, loss_class, student, rows, sentences):
        batch, ids = features(student, sentences[:6]), torch.arange(6)

        def cosine(dims, **options):
            name = "dims" if loss_class is losses.CosineDistill else "cosine_dims"
            term = loss_class(student, teacher=rows, **{name: dims}, **options)(batch, ids)
            return (term if loss_class is losses.CosineDistill else term["cosine"]).item()

        wide, narrow = cosine([24]), cosine([8])
        assert cosine([24, 8]) == pytest.approx((wide + narrow) / 2, rel=1e-5)
        # 24 and 8 of 32
        assert cosine([8, 24], cosine_weights="proportional") == pytest.approx(0.75 * wide + 0.25 * narrow, rel=1e-5)
        assert cosine(None, cosine_weights="proportional") == pytest.approx(wide, rel=1e-5)

    @pytest.mark.parametrize("heads", ["independent", "nested"])
    def test_several_linear_maps_refuse_matryoshka_loss(self, heads, make_student, rows, sentences):
        several = make_student(MatryoshkaProjection(32, [24, 8], heads=heads, teacher_head=TEACHER_WIDTH))
        wrapped = MatryoshkaLoss(several, losses.CosineDistill(several, teacher=rows), [24, 8])
        with pytest.raises(TypeError, match="cannot be wrapped in MatryoshkaLoss where the projection has independent"):
            wrapped(features(several, sentences[:4]), torch.arange(4))


class TestMatryoshkaLoss:
    @pytest.mark.parametrize("mini_batch_size", [None, 3])
    @pytest.mark.parametrize("loss_class", SINGLE)
    def test_row_numbers(self, loss_class, mini_batch_size, student, rows, sentences):
        """Wrapped in the library's modifier, a single loss is the sum over the prefixes."""
        ids, teacher = torch.arange(8), rows.gather(torch.arange(8))
        wrapped = MatryoshkaLoss(student, loss_class(student, teacher=rows, mini_batch_size=mini_batch_size), [24, 8])
        loss = wrapped(features(student, sentences[:8]), ids)
        loss.backward()
        assert gradients(student)
        embeddings, expected = student.encode(sentences[:8], convert_to_tensor=True), 0.0
        for dim in (24, 8):
            if loss_class is losses.CosineDistill:
                aligned = (teacher @ student[2].rotation)[:, :dim]
                expected += functional.cosine_distill(embeddings[:, :dim], aligned).item()
            elif loss_class is losses.SimilarityDistill:
                expected += functional.similarity_distill(embeddings[:, :dim], teacher).item()
            else:
                expected += functional.triplet_distill(embeddings[:, :dim], teacher).item()
        assert loss.item() == pytest.approx(expected, rel=1e-4)

    def test_vectors_cut_before_their_rotation_are_refused(self, make_student, sentences):
        student = make_student(MatryoshkaProjection(32, [24, 8], rotation=random_rotation(24, 24)))
        wrapped = MatryoshkaLoss(student, losses.CosineDistill(student), [24, 8])
        with pytest.raises(ValueError, match="rotation is for teacher vectors of 24 dimensions. Got 8 instead"):
            wrapped(features(student, sentences[:4]), torch.randn(4, 24))

    def test_vectors(self, make_student, sentences):
        student = make_student(MatryoshkaProjection(32, [24, 8])).eval()
        vectors = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
        loss = MatryoshkaLoss(student, losses.CosineDistill(student), [24, 8])(
            features(student, sentences[:4]), vectors
        )
        embeddings = student.encode(sentences[:4], convert_to_tensor=True)
        expected = sum(functional.cosine_distill(embeddings[:, :dim], vectors[:, :dim]).item() for dim in (24, 8))
        assert loss.item() == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("mini_batch_size", [None, 3])
    def test_jasper_refuses(self, mini_batch_size, student, rows, sentences):
        loss = losses.JasperDistill(student, teacher=rows, mini_batch_size=mini_batch_size)
        wrapped = MatryoshkaLoss(student, loss, [24, 8])
        with pytest.raises(TypeError, match="returns several terms. Give it dims="):
            wrapped(features(student, sentences[:4]), torch.arange(4))


class TestGradCache:
    @pytest.mark.parametrize("loss_class", [*SINGLE, losses.JasperDistill])
    @pytest.mark.parametrize("mini_batch_size", [1, 3, 16])
    def test_gradient_equals_the_plain_one(self, loss_class, mini_batch_size, student, rows, sentences):
        results = []
        for size in (None, mini_batch_size):
            loss = loss_class(student, teacher=rows, dims=[24, 8], mini_batch_size=size)
            value = loss(features(student, sentences[:10]), torch.arange(10))
            total = sum(value.values()) if isinstance(value, dict) else value
            total.backward()
            terms = {k: v.item() for k, v in value.items()} if isinstance(value, dict) else {"": value.item()}
            results.append((terms, gradients(student)))
        (plain, plain_gradients), (cached, cached_gradients) = results
        assert plain == pytest.approx(cached, rel=1e-4)
        assert_same_gradients(plain_gradients, cached_gradients)

    @pytest.mark.parametrize("loss_class", [*SINGLE, losses.JasperDistill])
    def test_parts_of_like_length_change_nothing(self, loss_class, student, sentences):
        rows = Rows(32)
        results = []
        for parts in (1, 3):
            loss = loss_class(student, teacher=rows, dims=[24, 8], length_parts=parts)
            columns = [
                *features(student, sentences[:16]),
                *features(student, [f"{text} {text}" for text in sentences[:16]]),
            ]
            found = loss(columns, torch.arange(32).view(2, 16).T)
            total = sum(found.values()) if isinstance(found, dict) else found
            total.backward()
            results.append((total.item(), gradients(student)))
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
        assert_same_gradients(results[0][1], results[1][1])

    @pytest.mark.parametrize("where", ["alone", "parts", "several processes", "compiled", "wrapped"])
    def test_where_a_column_is_not_split(self, where, student, sentences, monkeypatch):
        """Processes must call the model alike, a compiled one would compile each length, MatryoshkaLoss keeps one return."""
        texts = [*sentences[:12], *[" ".join(sentences)] * 12]
        loss = losses.CosineDistill(student, teacher=Rows(24), length_parts=2 if where == "parts" else None)
        if where in ("several processes", "parts"):
            monkeypatch.setattr(losses, "get_world_size", lambda: 2)
        if where == "compiled":
            monkeypatch.setattr(student, "_orig_mod", None, raising=False)
        calls = []
        student[0].register_forward_hook(lambda *_: calls.append(1))
        wrapped = MatryoshkaLoss(student, loss, [24]) if where == "wrapped" else loss
        wrapped(features(student, texts), torch.arange(24))
        assert len(calls) == (2 if where in ("alone", "parts") else 1)

    @pytest.mark.parametrize("loss_class", [*SINGLE, losses.JasperDistill])
    @pytest.mark.parametrize("mini_batch_size", [48, 256])
    def test_gradient_with_dropout(self, loss_class, mini_batch_size, make_student, sentences):
        """At batch 256 the gradient is the plain loss's over the same dropout masks.

        Dropout draws its masks once for every forward of the model, so other mini-batches mean other masks, and the plain
        loss of one forward is another function. The same function is the plain loss of the same mini-batches embedded one
        after another from the same seed, with their graphs kept. With one mini-batch that is the plain forward itself.
        """
        student = make_student(MatryoshkaProjection(32, [24, 8], rotation=random_rotation(TEACHER_WIDTH, 24))).train()
        rows = Rows(256)
        texts = [f"{sentences[i % 16]} {sentences[i * 7 % 13]}" for i in range(256)]
        labels = torch.arange(256)
        plain = loss_class(student, teacher=rows, dims=[24, 8], length_parts=1)
        torch.manual_seed(0)
        if mini_batch_size == 256:
            expected = plain(features(student, texts), labels)
        else:
            parts = [texts[start : start + mini_batch_size] for start in range(0, 256, mini_batch_size)]
            embeddings = [student(features(student, part)[0])["sentence_embedding"] for part in parts]
            expected = plain.calculate_loss([embeddings], labels)
        expected = expected if isinstance(expected, dict) else {"": expected}
        sum(expected.values()).backward()
        expected_gradients = gradients(student)

        cached = loss_class(student, teacher=rows, dims=[24, 8], mini_batch_size=mini_batch_size)
        torch.manual_seed(0)
        found = cached(features(student, texts), labels)
        found = found if isinstance(found, dict) else {"": found}
        sum(found.values()).backward()
        found_gradients = gradients(student)

        assert {name: term.item() for name, term in found.items()} == pytest.approx(
            {name: term.item() for name, term in expected.items()}, rel=1e-5
        )
        assert found_gradients.keys() == expected_gradients.keys()
        whole = torch.cat([value.flatten() for value in expected_gradients.values()])
        error = torch.cat([(found_gradients[name] - value).flatten() for name, value in expected_gradients.items()])
        assert error.norm() < 1e-5 * whole.norm()

    def test_every_head_is_cached(self, make_student, rows, sentences):
        student = make_student(
            MatryoshkaProjection(32, [24, 8], heads="independent", teacher_head=TEACHER_WIDTH)
        ).eval()
        results = []
        for size in (None, 4):
            loss = losses.JasperDistill(student, teacher=rows, dims=[24, 8], mini_batch_size=size)
            sum(loss(features(student, sentences[:10]), torch.arange(10)).values()).backward()
            results.append(gradients(student))
        assert_same_gradients(*results)

    def test_static_embeddings_are_refused(self):
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding
        from tokenizers import Tokenizer, models

        tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
        student = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu")
        with pytest.raises(ValueError, match="StaticEmbedding's cannot"):
            losses.CosineDistill(student, mini_batch_size=2)
        assert losses.CosineDistill(student)([student.preprocess(["a", "a b"])], torch.randn(2, 4)).item() >= 0


class TestTraining:
    def arguments(self, folder, **options) -> SentenceTransformerTrainingArguments:
        defaults = {
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        return SentenceTransformerTrainingArguments(output_dir=str(folder), **{**defaults, **options})

    def test_each_term_is_logged_and_the_sum_falls(self, student, rows, sentences, tmp_path):
        dataset = Dataset.from_dict({"text": sentences, "label": list(range(16))})
        loss = losses.JasperDistill(student, teacher=rows, dims=[24, 8])
        arguments = self.arguments(tmp_path, max_steps=12, per_device_train_batch_size=16)
        trainer = SentenceTransformerTrainer(
            model=student, args=arguments, train_dataset=dataset, eval_dataset=dataset, loss=loss
        )
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "cosine" in entry]
        assert len(logged) == 12
        for entry in logged:
            assert entry["loss"] == pytest.approx(entry["cosine"] + entry["similarity"] + entry["triplet"], abs=1e-3)
        assert logged[-1]["loss"] < logged[0]["loss"]
        trainer.evaluate()
        evaluated = {key for entry in trainer.state.log_history for key in entry}
        assert {"eval_cosine", "eval_similarity", "eval_triplet"} <= evaluated

    @pytest.mark.parametrize("labels", ["rows", "vectors"])
    def test_fit(self, labels, student, rows, sentences, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        label = (lambda i: i) if labels == "rows" else (lambda i: rows.vectors[i].tolist())
        examples = [InputExample(texts=[text], label=label(i)) for i, text in enumerate(sentences)]
        before = student[2].linears[0].weight.detach().clone()
        student.fit(
            [(DataLoader(examples, batch_size=8), losses.CosineDistill(student, teacher=rows))],
            epochs=1,
            warmup_steps=0,
            optimizer_params={"lr": 1e-3},
            show_progress_bar=False,
        )
        assert not torch.equal(before, student[2].linears[0].weight)

    def test_checkpoints_resume(self, make_student, rows, sentences, tmp_path):
        """Killed after half the steps and resumed, the student ends where an undisturbed run ends."""
        dataset = Dataset.from_dict({"text": sentences, "label": list(range(16))})

        def train(folder, *, stop_after: int | None = None, resume: bool = False):
            torch.manual_seed(0)
            student = make_student(MatryoshkaProjection(32, [24, 8], rotation=random_rotation(TEACHER_WIDTH, 24)))
            arguments = self.arguments(folder, max_steps=6, save_strategy="steps", save_steps=3)
            loss = losses.JasperDistill(student, teacher=rows, dims=[24, 8])
            trainer = SentenceTransformerTrainer(model=student, args=arguments, train_dataset=dataset, loss=loss)
            if stop_after is not None:
                from transformers import TrainerCallback

                class Stop(TrainerCallback):
                    def on_step_end(self, args, state, control, **kwargs):
                        control.should_training_stop = state.global_step >= stop_after

                trainer.add_callback(Stop())
            trainer.train(resume_from_checkpoint=resume)
            return student

        whole = train(tmp_path / "whole")
        train(tmp_path / "cut", stop_after=3)
        resumed = train(tmp_path / "cut", resume=True)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(value, resumed.state_dict()[name], msg=name)

    @pytest.mark.parametrize("loss_class", [*SINGLE, losses.JasperDistill])
    def test_model_card_cites(self, loss_class, student, rows, sentences, tmp_path):
        dataset = Dataset.from_dict({"text": sentences, "label": list(range(16))})
        loss = loss_class(student, teacher=rows, dims=[24, 8])
        SentenceTransformerTrainer(
            model=student, args=self.arguments(tmp_path, max_steps=1), train_dataset=dataset, loss=loss
        ).train()
        student.save(str(tmp_path / "model"))
        card = (tmp_path / "model" / "README.md").read_text()
        assert loss_class.__name__ in card
        assert "2412.19048" in card
        assert '"dims": [' in card


class TestErrors:
    @pytest.mark.parametrize(
        ("labels", "error", "message"),
        [
            (None, ValueError, "needs a 'label' column"),
            (torch.zeros(4, 2, dtype=torch.long), ValueError, r"shape \(batch,\) or \(batch, 1\) for 1 columns"),
            (torch.zeros(4), ValueError, r"shape \(batch, dim\) or \(batch, 1, dim\) for 1 columns. Got \(4,\)"),
            (torch.zeros(4, 2, 8), ValueError, r"Got \(4, 2, 8\)"),
            (torch.zeros(4, 0), ValueError, r"for 1 columns. Got \(4, 0\)"),
            (torch.zeros(4, 1, 0), ValueError, r"for 1 columns. Got \(4, 1, 0\)"),
            ([0, 1, 2, 3], TypeError, "labels of CosineDistill must be a tensor.* Got list"),
            (torch.zeros(3, dtype=torch.long), ValueError, "Got 3 labels and 4 rows"),
            (torch.full((4, TEACHER_WIDTH), torch.nan), ValueError, "4 of 4 rows.*first being row 0"),
            (torch.ones(4, 7), ValueError, "rotation is for teacher vectors of 48 dimensions. Got 7"),
        ],
    )
    def test_labels(self, labels, error, message, student, rows, sentences):
        with pytest.raises(error, match=message):
            losses.CosineDistill(student, teacher=rows)(features(student, sentences[:4]), labels)

    def test_a_dataset_of_labels_alone(self, student, rows):
        with pytest.raises(ValueError, match="needs a column of texts or images at least. Got none"):
            losses.CosineDistill(student, teacher=rows)([], torch.arange(4))

    def test_row_numbers_without_a_store(self, student, sentences):
        with pytest.raises(ValueError, match="can only be row numbers of a TeacherStore, but it has none"):
            losses.CosineDistill(student)(features(student, sentences[:4]), torch.arange(4))

    def test_cosine_of_two_widths(self, make_student, rows, sentences):
        student = make_student()
        with pytest.raises(ValueError, match="Got 32 for 'student' and 48 for 'teacher'"):
            losses.CosineDistill(student, teacher=rows)(features(student, sentences[:4]), torch.arange(4))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"dims": [48]}, ValueError, "must not exceed the model's 24 dimensions. Got 48"),
            ({"dims": []}, ValueError, "distinct positive dimensions"),
            ({"dims": [8, 8]}, ValueError, "distinct positive dimensions"),
            ({"cosine_dims": [0]}, ValueError, "'cosine_dims' must be distinct positive"),
            (
                {"cosine_weights": [3, 1]},
                ValueError,
                "'cosine_weights' must be equal or proportional. Got .3, 1. instead",
            ),
            ({"weights": {"cosin": 1}}, ValueError, "must be of cosine, similarity, triplet. Got cosin"),
            ({"weights": {"cosin": 1, 2: 1}}, ValueError, "must be of cosine, similarity, triplet. Got 2, cosin"),
            ({"weights": {"cosine": -1}}, ValueError, "at least 0"),
            ({"weights": {"cosine": math.inf}}, ValueError, "at least 0"),
            ({"weights": {}}, ValueError, "one above it"),
            ({"margin": -1}, ValueError, "'margin' must be"),
            ({"length_parts": 0}, ValueError, "'length_parts' must be a whole number from 1, or None. Got 0"),
            ({"mini_batch_size": 0}, ValueError, "'mini_batch_size' must be a whole number from 1, or None. Got 0"),
            ({"mini_batch_size": 2.5}, ValueError, "'mini_batch_size' must be a whole number from 1, or None. Got 2.5"),
            ({"dims": "24"}, TypeError, "'dims' must be a list of dimensions.* Got '24'"),
            ({"dims": 24}, TypeError, "'dims' must be a list of dimensions.* Got 24"),
            ({"dims": [8.5]}, ValueError, "'dims' must be distinct positive dimensions. Got .8.5"),
            ({"weights": [10, 200, 20]}, TypeError, "'weights' must be a mapping"),
            ({"weights": {"cosine": "ten"}}, ValueError, "'weights' must be numbers of at least 0"),
            ({"margin": "wide"}, ValueError, "'margin' must be a finite number of at least 0"),
            ({"teacher": "teacher/"}, TypeError, "must be a TeacherStore or a view of one. Got str"),
        ],
    )
    def test_options(self, options, error, message, student):
        with pytest.raises(error, match=message):
            losses.JasperDistill(student, **options)

    @pytest.mark.parametrize("wrong", [math.nan, math.inf])
    def test_store_with_damaged_vectors(self, wrong, student, rows, sentences):
        rows.gather = lambda ids: torch.full((len(ids), TEACHER_WIDTH), wrong)
        with pytest.raises(ValueError, match="'teacher' vectors must be finite. Got NaN or infinite values in 4 of 4"):
            losses.JasperDistill(student, teacher=rows)(features(student, sentences[:4]), torch.arange(4))

    def test_model_is_no_name(self):
        with pytest.raises(TypeError, match="'model' of TripletDistill must be a SentenceTransformer. Got str"):
            losses.TripletDistill("some/model")

    def test_a_dimension_of_one(self, student, rows, sentences):
        loss = losses.CosineDistill(student, teacher=rows, dims=[1])
        terms = loss(features(student, sentences[:4]), torch.arange(4))
        # At one dimension a cosine is 1 or -1, and so each text's term 0 or 2.
        assert terms.item() * 2 == pytest.approx(round(terms.item() * 2), abs=1e-5)

    def test_dims_of_independent_heads(self, make_student):
        student = make_student(MatryoshkaProjection(32, [24, 8], heads="independent"))
        with pytest.raises(ValueError, match=r"among the projection's heads \[24, 8\]. Got \[16\]"):
            losses.SimilarityDistill(student, dims=[16])

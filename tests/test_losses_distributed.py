"""Two processes with half a batch each see the loss and the gradient of one process with the whole batch."""

from __future__ import annotations

import itertools

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, distributed, multiprocessing

from st_distill import functional, losses
from st_distill.exporting import load_student
from st_distill.modules import MatryoshkaProjection
from st_distill.modules.rotation import random_rotation

ROWS = 8
LOSSES = {
    name: getattr(losses, name) for name in ("CosineDistill", "SimilarityDistill", "TripletDistill", "JasperDistill")
}
#: Loss, columns, labels of each column or one for all, vectors or row numbers, texts at a time.
CASES = list(itertools.product(LOSSES, [1, 2], [True, False], ["vectors", "rows"], [None, 3]))


class Rows:
    """A teacher's vectors in memory, by row number."""

    dimension = 48

    def __init__(self) -> None:
        self.vectors = torch.randn(2 * ROWS, 48, generator=torch.Generator().manual_seed(0))

    def gather(self, ids: Tensor) -> Tensor:
        return functional.normalize(self.vectors[ids])


def result(
    model: SentenceTransformer, texts: list[str], part: slice, case: tuple, gather: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms and the gradients for some rows of the batch."""
    name, columns, each, labels, mini_batch_size = case
    rows = Rows()
    ids = torch.arange(2 * ROWS).view(2, ROWS).T
    ids = ids[part, :columns] if each else ids[part, 0]
    features = [model.preprocess(texts[column * ROWS : (column + 1) * ROWS][part]) for column in range(columns)]
    options = {"dims": [24, 8], "mini_batch_size": mini_batch_size, "gather_across_devices": gather}
    loss = LOSSES[name](model, teacher=rows, **options)(features, rows.vectors[ids] if labels == "vectors" else ids)
    terms = loss if isinstance(loss, dict) else {"": loss}
    sum(terms.values()).backward()
    gradients = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return {key: value.detach() for key, value in terms.items()}, gradients


def work(rank: int, folder: str, texts: list[str]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    half = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    model = load_student(f"{folder}/student", device="cpu").eval()
    found = [result(model, texts, half, case, True) for case in CASES]
    for _, gradients in found:
        for value in gradients.values():  # as DistributedDataParallel does
            distributed.all_reduce(value)
            value /= 2
    torch.save(found, f"{folder}/found{rank}.pt")
    distributed.destroy_process_group()


def test_the_joint_loss_and_gradient(make_student, sentences, tmp_path):
    student = make_student(MatryoshkaProjection(32, [24, 8], rotation=random_rotation(48, 24))).eval()
    student.save(str(tmp_path / "student"))
    multiprocessing.spawn(work, (str(tmp_path), sentences), nprocs=2)
    found = [torch.load(tmp_path / f"found{rank}.pt", weights_only=True) for rank in range(2)]
    for index, case in enumerate(CASES):
        joint = (*case[:-1], None)  # one process, one forward
        expected_terms, expected = result(student, sentences, slice(None), joint, False)
        scale = max(float(value.abs().max()) for value in expected.values())
        # The cosine term alone is each process's own; what is trained on is the mean of their gradients.
        means = {name: (term + found[1][index][0][name]) / 2 for name, term in found[0][index][0].items()}
        for rank in range(2):
            terms, gradients = found[rank][index]
            terms = means if case[0] == "CosineDistill" else terms
            torch.testing.assert_close(terms, expected_terms, rtol=1e-4, atol=1e-6, msg=f"{case} on {rank}")
            assert gradients.keys() == expected.keys()
            for name, value in expected.items():
                message = f"{case} on {rank}: {name}"
                torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-5 * scale, msg=message)

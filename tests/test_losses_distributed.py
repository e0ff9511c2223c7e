"""Two processes with half a batch each see the gradient of one process with the whole batch."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer
from torch import distributed, multiprocessing

from st_distill import losses
from st_distill.exporting import load_student
from st_distill.modules import MatryoshkaProjection
from st_distill.modules.matryoshka import random_rotation

ROWS = 8


def teacher_vectors() -> torch.Tensor:
    return torch.randn(ROWS, 48, generator=torch.Generator().manual_seed(0))


def gradient(
    model: SentenceTransformer, texts: list[str], labels: torch.Tensor, mini_batch_size: int | None, gather: bool
):
    loss = losses.JasperDistill(model, dims=[24, 8], mini_batch_size=mini_batch_size, gather_across_devices=gather)
    sum(loss([model.preprocess(texts)], labels).values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def work(rank: int, folder: str, texts: list[str], mini_batch_size: int | None) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    half = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    model = load_student(f"{folder}/student", device="cpu").eval()
    found = gradient(model, texts[half], teacher_vectors()[half], mini_batch_size, True)
    for value in found.values():  # as DistributedDataParallel does
        distributed.all_reduce(value)
        value /= 2
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    distributed.destroy_process_group()


def test_the_joint_gradient(make_student, sentences, tmp_path):
    student = make_student(MatryoshkaProjection(32, [24, 8], rotation=random_rotation(48, 24))).eval()
    student.save(str(tmp_path / "student"))
    expected = gradient(student, sentences[:ROWS], teacher_vectors(), None, False)
    for mini_batch_size in (None, 2):
        (tmp_path / "meeting").unlink(missing_ok=True)
        multiprocessing.spawn(work, (str(tmp_path), sentences[:ROWS], mini_batch_size), nprocs=2)
        found = torch.load(tmp_path / "found.pt", weights_only=True)
        assert found.keys() == expected.keys()
        scale = max(value.abs().max() for value in expected.values())
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * float(scale), msg=name)

from __future__ import annotations

import pytest

from st_distill.recipe import arguments


@pytest.mark.parametrize(
    ("report_to", "message"),
    [
        (["tensorboard"], "tensorboard must be installed to report to it; run: pip install tensorboard"),
        ("tensorboard", "run: pip install tensorboard"),
        ("tensorbord", "'tensorbord' is nothing that transformers reports to; did you mean 'tensorboard'?"),
        (["all", "wandb"], "'all' must stand alone"),
    ],
)
def test_what_cannot_be_reported_to(report_to, message, monkeypatch):
    monkeypatch.setitem(arguments._REPORTS, "tensorboard", (lambda: False, "tensorboard"))
    ((blamed, complaint),) = arguments.complaints({"report_to": report_to})
    assert blamed == "report_to"
    assert message in complaint


@pytest.mark.parametrize("report_to", ["none", ["none"], "all", ["all"], [], ["tensorboard"]])
def test_what_can(report_to, monkeypatch):
    monkeypatch.setitem(arguments._REPORTS, "tensorboard", (lambda: True, "tensorboard"))
    assert list(arguments.complaints({"report_to": report_to})) == []

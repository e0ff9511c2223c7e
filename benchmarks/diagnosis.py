"""What the diagnosis of a training costs: the time inside DiagnosisCallback beside that of the steps, in one training.

    python benchmarks/diagnosis.py --model sentence-transformers/all-MiniLM-L6-v2 --rounds 1

Every step of so short a training is looked at; a longer one is looked at in twenty of its steps.
"""

from __future__ import annotations

import time
from typing import Any

from sentence_transformers import SentenceTransformerTrainer
from shared import Clock, read_options, setting, training_arguments

from st_distill import losses
from st_distill.diagnosis import DiagnosisCallback


class Timed(DiagnosisCallback):
    """The callback, with the seconds that it has taken."""

    seconds = 0.0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith(("on_", "_see")):
            return found

        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return found(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def main() -> None:
    options = read_options(__doc__, steps=8)
    with setting(options) as on:
        for _ in range(options.rounds):
            diagnosis, clock = Timed(), Clock()
            loss = losses.JasperDistill(on.student, teacher=on.store, dims=on.dims)
            arguments = training_arguments(options, on.folder, logging_steps=1)
            SentenceTransformerTrainer(
                model=on.student,
                args=arguments,
                train_dataset=on.rows,
                loss=loss,
                callbacks=[diagnosis, clock],
            ).train()
            steps = options.steps + 2
            a_step, a_look = sum(clock.steps()) / len(clock.steps()), diagnosis.seconds / steps
            print(
                f"{1000 * a_look:.2f} ms of {1000 * a_step:.0f} in a step that is looked at ({100 * a_look / a_step:.2f} %), "
                f"and {100 * 20 * a_look / (1000 * a_step):.4f} % of a training of 1,000 steps"
            )


if __name__ == "__main__":
    main()

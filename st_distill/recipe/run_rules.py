"""The rules of every kind of run: its folders, its attention kernel, and its trainer's arguments."""

from __future__ import annotations

import errno
import importlib.util
import os
import platform
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, TrainingArguments
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import (
    is_flash_attn_2_available,
    is_torch_bf16_gpu_available,
    is_torch_tf32_available,
    is_torch_xla_available,
)

from st_distill.checksums import others_file, stage_around
from st_distill.errors import one_line
from st_distill.files import in_the_way, no_place
from st_distill.modules.alibi_attention import PLANS
from st_distill.modules.alibi_config import AlibiBertConfig
from st_distill.nearest import any_of, suggest
from st_distill.recipe.arguments import HARDWARE, compile_complaint, complaints, hints_of, range_complaint
from st_distill.recipe.findings import Findings
from st_distill.recipe.processes import Processes
from st_distill.recipe.state import may_be_worked_in
from st_distill.words import FieldPath, show_path

__all__ = ["RunRules", "attention_dropout"]


def attention_dropout(config: PretrainedConfig | None) -> float:
    """The share of the attention's weights that a model of this configuration drops; 0 where it says nothing of it."""
    shares = (getattr(config, name, None) for name in ("attention_probs_dropout_prob", "attention_dropout"))
    return next((share for share in shares if isinstance(share, int | float)), 0.0)


def _complaint(folder: Path, *, replaced: bool) -> str | None:
    """Why a folder cannot be written, as `RunRules.place` reports it."""
    if str(folder).startswith("~"):  # a folder of that name would be made, and who removes it may remove his home
        return "begins with '~', which is no home folder here; write the whole path"
    if not str(folder).strip() or (replaced and folder.name in ("", "..")):
        return f"must end with the name of a folder, got '{folder}'; name one, such as out/model"
    if replaced and os.path.islink(folder):
        return f"'{folder}' is a link; name the folder that it leads to"
    if (why := no_place(folder)) is not None:
        return f"{why}; name another place"
    try:
        Path(os.path.realpath(folder)).exists()
    except OSError as error:  # a folder around it may not be looked into
        return f"cannot be a folder: {one_line(error)}"
    if folder.is_file():
        return "is a file; name a folder"
    blocking = in_the_way(folder)
    if blocking is not None and blocking.is_symlink() and not blocking.exists():
        try:
            blocking.stat()
        except OSError as error:
            if error.errno == errno.ELOOP:
                return f"'{blocking}' is a link that leads to itself; remove it, or name another place"
        return f"'{blocking}' is a link to what is not there; make that folder, or name another place"
    return None if blocking is None else f"'{blocking}' is no folder; name another place"


_IMITATED = "the processor only imitates it (without AVX-512), which takes many times as long"


def _imitates_bf16() -> bool:
    """Whether torch has to make up for what this processor cannot do; others than Intel's kind are not known to."""
    is_intels_kind = platform.machine().lower() in ("x86_64", "amd64")
    return is_intels_kind and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2")


class RunRules(Findings):
    """What a run may say of its ``output`` and ``work``, of the kernel of its attention, and of its training arguments."""

    #: Whether it is this machine that the recipe is to run on: what the run would end by is an error then.
    here = False

    # --- folders -----------------------------------------------------------------------------------------------------

    def run_folders(
        self,
        *,
        description: str,
        beside: Iterable[str] = (),
        read: Iterable[str | None] = (),
    ) -> None:
        """Output and work are two folders, and nothing in them is the user's.

        Args:
            description: the file by which an earlier run's output is known, and which notes what it wrote.
            beside: further names that are written beside the output.
            read: models that the run reads.
        """
        if not self.recipe.output or not self.sound(("output",), ("work",)):
            return
        where: FieldPath = ("work",) if self.recipe.work is not None else ("output",)
        plain = Path(self.recipe.output)
        named = [plain, *(plain.with_name(name) for name in beside if plain.name)]
        targets = [real for path in named if (real := self.place(("output",), path, replaced=True)) is not None]
        work = None
        if len(targets) == len(named) or where == ("work",):  # else it is said already
            work = self.place(where, self.recipe.work_folder)
        if work is None or len(targets) < len(named):
            return
        output, *others = targets
        if output == work:
            self.error(where, "output and work must be two folders; leave work out for <output>-run")
        elif output in work.parents or work in output.parents:
            inner, outer = ("work", "output") if output in work.parents else ("output", "work")
            self.error(
                where, f"the {inner} folder must not be inside the {outer} folder; leave work out for <output>-run"
            )
        if work in others:
            self.error(where, f"'{self.recipe.work_folder}' is written beside the output; name another folder")
        # What a recipe reads is no folder to write to, whatever else there is to say of it.
        models = {Path(os.path.realpath(model)): model for model in read if model is not None}
        for place, path in ((("output",), output), (where, work)):
            if path in models:
                self.error(place, f"'{models[path]}' is a model that the recipe reads; name another folder")
        for target in (output, *others):
            if (around := stage_around(target)) is not None:
                self.error(("output",), f"lies in {around}, where a run has its stages; name another folder")
            for inner in (model for path, model in models.items() if target in path.parents):
                self.error(("output",), f"'{inner}', which the recipe reads, lies in it; name another folder")
            if target not in models and (file := others_file(target, description)) is not None:
                self.error(
                    ("output",),
                    f"'{target}' holds '{file}', which is no export's; move that away, or name a new folder",
                )
        if work.is_dir() and work not in models and not may_be_worked_in(work):
            self.error(where, f"'{self.recipe.work_folder}' holds other files than a run's; name a new folder")

    def place(self, path: FieldPath, folder: Path, *, replaced: bool = False) -> Path | None:
        """Where a folder that is to be written really lies; None where none can be, which is reported.

        Args:
            path: the field that names it.
            folder: as it is named there.
            replaced: whether it is replaced whole.
        """
        if (complaint := _complaint(folder, replaced=replaced)) is not None:
            self.error(path, complaint)
            return None
        return Path(os.path.realpath(folder))

    # --- attention ---------------------------------------------------------------------------------------------------

    def kernel(self, path: FieldPath, name: str, config: PretrainedConfig | None) -> None:
        """Whether a model of this configuration, None for an unknown one, has the kernel of that name."""
        if config is not None and config.model_type == AlibiBertConfig.model_type:
            if name not in PLANS:
                self.error(path, f"the ALiBi encoder has no '{name}'; leave it out, or set {any_of(list(PLANS))}")
        elif name == "blockwise" and config is not None:
            self.error(path, "blockwise is the ALiBi encoder's; leave it out, or set sdpa")
        elif name == "flash_attention_2" and not is_flash_attn_2_available():
            self.error(
                path,
                "flash_attention_2 needs a GPU and a package that is not there: pip install flash-attn --no-build-isolation",
            )
        elif config is not None and "/" not in name:  # with one it is a kernel of the hub
            known_names = ["eager", *ALL_ATTENTION_FUNCTIONS]
            if name not in known_names:
                self.error(path, f"transformers has no attention '{name}'{suggest(name, known_names, always=True)}")

    def flex_backward(self, path: FieldPath, *, use_cpu: bool) -> None:
        """Whether an encoder with flex_attention can be trained, which it cannot on a CPU."""
        if use_cpu:
            self.error(path, "flex_attention has no backward pass on a CPU, and use_cpu asks for one; set sdpa")
        elif not torch.accelerator.is_available():
            (self.error if self.here else self.warn)(
                path,
                "flex_attention has no backward pass on a CPU, and this machine has no accelerator; set sdpa to train here",
            )

    # --- training arguments ------------------------------------------------------------------------------------------

    def known_arguments(
        self, where: FieldPath, given: Mapping[str, Any], cls: type[TrainingArguments], reserved: Mapping[str, str]
    ) -> dict[str, Any]:
        """The given training arguments that are known, of the right type and in range; the others are reported.

        What depends on the machine is looked at, and left out.
        """
        good = self.options(where, given, hints_of(cls), reserved)  # type: ignore[arg-type]
        for name in list(good):
            if (complaint := range_complaint(name, good[name])) is not None:
                self.error((*where, name), complaint)
                del good[name]
        if good.pop("warmup_ratio", None) is not None:
            self.warn((*where, "warmup_ratio"), "is deprecated; give warmup_steps the same number, a share below 1")
        self._hardware(where, good)
        return good

    def joint_arguments(
        self,
        where: FieldPath,
        good: Mapping[str, Any],
        cls: type[TrainingArguments],
        *,
        given: Container[str],
        places: Mapping[str, FieldPath],
        reported: Container[str],
    ) -> None:
        """What the training arguments say against themselves, together.

        Args:
            where: the field that holds them.
            good: all of them that are well in themselves.
            cls: their class.
            given: those that stand in that field.
            places: the fields that stand for others.
            reported: fields that a complaint has been made of already.
        """
        for blamed, message in complaints(dict(good), cls):
            inner = (*where, blamed) if blamed is not None and blamed in given else places.get(str(blamed), where)
            if show_path(inner) not in reported:
                self.error(inner, message)

    def evaluates(
        self, where: FieldPath, good: dict[str, Any], given: Container[str], *, held_out: bool, metrics: Sequence[str]
    ) -> None:
        """Evaluation during training needs something to evaluate on; what is best is one of ``metrics``, if any are known."""
        asks = str(good.get("eval_strategy", "no")) != "no"
        if asks and not held_out and self.sound(("evaluation",)):
            self.error((*where, "eval_strategy"), "evaluating while training needs texts in the recipe's 'evaluation'")
        for name in ("load_best_model_at_end", "metric_for_best_model"):
            if good.get(name) and not asks and "eval_strategy" not in given:
                self.error((*where, name), "needs evaluation during training; set eval_strategy: steps or epoch")
                del good[name]
        best = good.get("metric_for_best_model")
        if isinstance(best, str) and asks and held_out and metrics and best.removeprefix("eval_") not in metrics:
            message = f"'{best}' is no metric of the evaluation during training{suggest(best, metrics, always=True)}"
            self.error((*where, "metric_for_best_model"), message)
            del good["metric_for_best_model"]

    def _hardware(self, where: FieldPath, good: dict[str, Any]) -> None:
        """What depends on the machine: a recipe may be checked on another one than it runs on."""
        unless_elsewhere = self.error if self.here else self.warn
        for names in (("bf16", "fp16"), ("bf16_full_eval", "fp16_full_eval")):
            if all(good.get(name) for name in names):
                self.error((*where, names[1]), f"only one of {' and '.join(names)} can be true")
        on_cpu = bool(good.get("use_cpu"))
        has_bf16 = on_cpu or is_torch_bf16_gpu_available() or is_torch_xla_available()
        if (good.get("bf16") or good.get("bf16_full_eval")) and not has_bf16:
            name = "bf16" if good.get("bf16") else "bf16_full_eval"
            instead = f", and {_IMITATED}; leave it out" if _imitates_bf16() else "; add use_cpu: true"
            message = f"no accelerator of this machine computes in bf16{instead} to run it here"
            unless_elsewhere((*where, name), message)
        elif good.get("bf16") and on_cpu and not good.get("fp16") and _imitates_bf16():
            self.warn((*where, "bf16"), f"{_IMITATED}; leave it out to run it here")
        on_cpu = on_cpu or not torch.accelerator.is_available()
        if good.get("fp16") and on_cpu:
            unless_elsewhere(
                (*where, "fp16"), "needs an accelerator, which this machine does not have; leave it out to run it here"
            )
        if good.get("tf32") and not is_torch_tf32_available():
            message = (
                "needs an Nvidia GPU of Ampere or later, which this machine does not have; leave it out to run it here"
            )
            unless_elsewhere((*where, "tf32"), message)
        if good.get("fsdp") and Processes().count == 1:
            unless_elsewhere(
                (*where, "fsdp"), "shares a model out among processes; start several by torchrun, or leave it out"
            )
        encoder = getattr(self.recipe, "student", None) or getattr(self.recipe, "encoder", None)
        masked = encoder is not None and encoder.attn_implementation != "eager"
        if "underflow_overflow" in (good.get("debug") or ()) and on_cpu and masked:
            message = "underflow_overflow cannot look at masks of attention on a CPU; set attn_implementation: eager"
            unless_elsewhere((*where, "debug"), message)
        compiled = [good.get(f"torch_compile_{name}") for name in ("backend", "mode")]
        if (complaint := compile_complaint(*compiled)) is not None:
            self.error((*where, "torch_compile_backend" if compiled[0] else "torch_compile_mode"), complaint)
        if good.get("deepspeed"):
            if isinstance(good["deepspeed"], str) and not Path(good["deepspeed"]).is_file():
                self.error((*where, "deepspeed"), f"there is no file '{good['deepspeed']}'")
            if importlib.util.find_spec("deepspeed") is None:
                self.warn((*where, "deepspeed"), "needs a package that is not installed. Run: pip install deepspeed")
        for name in HARDWARE:
            good.pop(name, None)

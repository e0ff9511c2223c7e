"""The rules of a recipe's pictures and of the vision encoder that looks at them."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from st_distill.nearest import suggest
from st_distill.recipe.data import absent_pictures
from st_distill.recipe.findings import Findings
from st_distill.recipe.models import UnknownModel, read_config
from st_distill.recipe.schema import Images, ImageSource
from st_distill.words import FieldPath

__all__ = ["ImageRules"]

#: Patches of a side; a picture with more of them is a mistake in the configuration.
_MOST_PATCHES = 1024


class ImageRules(Findings):
    """What pictures and vision encoders may be."""

    @property
    def trains_vision(self) -> bool:
        return any(stage.trains_vision for stage in self.recipe.stages or [])

    def images(self) -> None:
        images, path = self.recipe.images, ("images",)
        if images is None:
            return
        if not self.trains_vision and self.sound(("stages",)):
            # Without a source they are what is left of a preset whose vision stage has been taken out.
            if any((images.path, images.dataset, images.data is not None)):
                self.warn(path, "no stage trains vision, so these are not used")
            return
        self.pictures(path, images)
        if images.vision is None and self.sound((*path, "vision")):
            self.error(path, "'vision' is missing: name a vision encoder, or give its configuration")
        elif isinstance(images.vision, str):
            self.vision_model(path, images)
        elif images.vision is not None:
            self.vision_config((*path, "vision"), images)

    def pictures(self, path: FieldPath, source: ImageSource) -> None:
        kinds = self.source(path, source)
        if kinds is None:
            return
        image = "file_name" if source.image not in kinds and "file_name" in kinds else source.image
        for field, name, wanted, what in (
            ("image", image, ("image", "text"), "pictures or their paths"),
            ("caption", source.caption, ("text",), "texts"),
        ):
            if name not in kinds:
                self.error((*path, field), f"there is no column '{name}'{suggest(name, kinds, always=True)}")
            elif kinds[name] not in wanted:
                self.error((*path, field), f"the column '{name}' must hold {what}, and it does not")
        if kinds.get(source.caption) == "text":
            self.whole(path, source, [source.caption])
        if kinds.get(image) in ("text", "image"):
            self.absent(path, source)

    def absent(self, path: FieldPath, source: ImageSource) -> None:
        try:
            absent = absent_pictures(source)
        except ValueError as error:
            self.error((*path, "path"), str(error).rstrip("."))
            return
        if absent:
            row, picture = absent[0]
            tell = self.warn if source.on_error == "skip" else self.error
            tell(
                (*path, "path"),
                f"pictures that are not there: {len(absent)}, the first in row {row}, '{picture}'; paths start at the "
                "table's folder",
            )

    def vision_model(self, path: FieldPath, images: Images) -> None:
        try:
            config = read_config(str(images.vision), None)
        except UnknownModel as unknown:
            self.warn((*path, "vision"), str(unknown))
            return
        except ValueError as error:
            self.error((*path, "vision"), str(error).rstrip("."))
            return
        config = config.get("vision_config") or config
        kind = CONFIG_MAPPING[config["model_type"]] if config.get("model_type") in CONFIG_MAPPING else None
        if kind is not None:
            built = kind.from_dict(config)
            if not _sees(built):
                self.error(
                    (*path, "vision"), f"'{images.vision}' is no vision encoder; SigLIP, CLIP, ViT and DINOv2 are"
                )
            else:
                # The image processor may have another size than the configuration, so this is no more than likely.
                self.visual_tokens(path, images, built, self.warn)

    def vision_config(self, path: FieldPath, images: Images) -> None:
        config = self.configuration(path, typing.cast("dict[str, Any]", images.vision))
        if config is None:
            return
        if not _sees(config):
            kind = config.model_type
            self.error((*path, "model_type"), f"'{kind}' is no vision encoder; siglip_vision_model and vit are")
            return
        self.visual_tokens(path[:-1], images, config, self.error)

    def visual_tokens(
        self, path: FieldPath, images: Images, config: PretrainedConfig, report: Callable[[FieldPath, str], None]
    ) -> None:
        """The patches, a square, are pooled in smaller squares, so only some numbers of tokens are possible."""
        patch = getattr(config, "patch_size", None)
        if not isinstance(patch, int) or images.tokens is None or not self.sound((*path, "tokens")):
            return
        side = config.image_size // patch
        if not 1 <= side <= _MOST_PATCHES:
            self.error(
                (*path, "vision"), f"image_size and patch_size give {side} x {side} patches, which is not possible"
            )
            return
        possible = [(side // factor) ** 2 for factor in range(side, 0, -1) if side % factor == 0]
        if images.tokens not in possible:
            report(
                (*path, "tokens"),
                f"{side} x {side} patches give {', '.join(map(str, possible))} tokens, got {images.tokens}",
            )
        longest = self.recipe.student.max_seq_length if self.recipe.student is not None else None
        if longest is not None and images.tokens >= longest:
            self.error(
                (*path, "tokens"), f"must be below the student's max_seq_length of {longest}, got {images.tokens}"
            )


def _sees(config: PretrainedConfig) -> bool:
    return isinstance(getattr(config, "image_size", None), int) and getattr(config, "hidden_size", None) is not None

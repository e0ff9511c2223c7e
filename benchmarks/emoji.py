"""Eyes for the student of benchmarks/stsb.py: captions find drawings by a vendor that training never saw.

    python benchmarks/stsb.py --data DATA --teacher sentence-transformers/all-MiniLM-L6-v2
    python benchmarks/emoji.py --data DATA --teacher sentence-transformers/all-MiniLM-L6-v2

DATA/emoji holds images.parquet (vendor, codepoint, png) and captions.parquet (codepoint, name, keywords, group). Stage 4 is
trained on the Noto drawings (flags left out, and each drawing shifted, turned, mirrored and tinted a few times), from random
weights; the name of an emoji then has to find its Twemoji drawing among all of them. The text stages are those of stsb.py and
are not done again; the STS-B figures have to come out the same to the last digit.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from pathlib import Path

import pandas
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures
from PIL import ImageEnhance
from stsb import text_recipe

from st_distill.recipe import Images, ImageSource, Recipe, Stage, run

COPIES = 8
FEATURES = Features({"image": Image(), "caption": Value("string")})


def drawings(data: Path, vendor: str) -> pandas.DataFrame:
    """Distinct drawings of one vendor with their captions, flags left out."""
    images = pandas.read_parquet(data / "emoji/images.parquet")
    captions = pandas.read_parquet(data / "emoji/captions.parquet")
    frame = images[images["vendor"] == vendor].merge(captions[captions["group"] != "flags"], on="codepoint")
    return frame[~frame["png"].duplicated()].reset_index(drop=True)


def varied(picture: Pictures.Image, generator: random.Random) -> Pictures.Image:
    """The drawing, a little moved, turned, scaled, tinted, and mirrored every other time."""
    if generator.random() < 0.5:
        picture = picture.transpose(Pictures.Transpose.FLIP_LEFT_RIGHT)
    side = picture.width
    size = round(side * generator.uniform(0.75, 1.1))
    picture = picture.rotate(generator.uniform(-15, 15), Pictures.Resampling.BICUBIC, fillcolor=(255, 255, 255))
    picture = picture.resize((size, size), Pictures.Resampling.BICUBIC)
    canvas = Pictures.new("RGB", (side, side), (255, 255, 255))
    spare = (side - size) // 2
    canvas.paste(picture, (spare + generator.randint(-5, 5), spare + generator.randint(-5, 5)))
    for enhancer in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        canvas = enhancer(canvas).enhance(generator.uniform(0.7, 1.3))
    return canvas


def on_white(png: bytes) -> Pictures.Image:
    picture = Pictures.open(io.BytesIO(png)).convert("RGBA")
    return Pictures.alpha_composite(Pictures.new("RGBA", picture.size, (255, 255, 255, 255)), picture).convert("RGB")


def write_images(data: Path, folder: Path, pixels: int) -> tuple[Path, Path]:
    """Training and test pictures as parquet files with an image and a caption column."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = folder / "noto.parquet", folder / "twemoji.parquet"
    generator = random.Random(0)
    rows: list[dict] = []
    for drawing in drawings(data, "noto").itertuples():
        for copy in range(COPIES):
            picture = on_white(drawing.png) if copy == 0 else varied(on_white(drawing.png), generator)
            words = generator.sample(list(drawing.keywords), min(4, len(drawing.keywords)))
            caption = drawing.name if copy % 2 == 0 else f"{drawing.name}: {', '.join(words)}"
            rows.append({"image": picture.resize((pixels, pixels), Pictures.Resampling.LANCZOS), "caption": caption})
    Dataset.from_list(rows, features=FEATURES).to_parquet(train)
    unseen = [
        {"image": on_white(row.png).resize((pixels, pixels), Pictures.Resampling.LANCZOS), "caption": row.name}
        for row in drawings(data, "twemoji").itertuples(index=False)
    ]
    Dataset.from_list(unseen, features=FEATURES).to_parquet(test)
    return train, test


def recipe_with_eyes(data: Path, teacher: str, text_output: Path, output: Path, options: argparse.Namespace) -> Recipe:
    recipe = text_recipe(data, teacher, text_output)
    train, test = write_images(data, output.with_name(output.name + "-images"), options.pixels)
    recipe.work = str(recipe.work_folder)
    recipe.output = str(output)
    recipe.images = Images(
        path=str(train),
        vision={
            "model_type": "siglip_vision_model",
            "hidden_size": options.width,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.width // 32,
            "intermediate_size": 2 * options.width,
            "image_size": options.pixels,
            "patch_size": 8,
        },
        tokens=options.tokens,
    )
    recipe.stages.append(
        Stage(
            train="vision",
            steps=options.steps,
            batch=90,
            learning_rate=1e-3,
            arguments={"warmup_steps": 0.05, "weight_decay": 0.05, "lr_scheduler_type": "cosine"},
        )
    )
    assert recipe.evaluation is not None
    recipe.evaluation.images = ImageSource(path=str(test))
    return recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--teacher", required=True, help="name or folder of all-MiniLM-L6-v2")
    parser.add_argument("--student", type=Path, default=Path("out/stsb"), help="output of benchmarks/stsb.py")
    parser.add_argument("--output", type=Path, default=Path("out/emoji"))
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--pixels", type=int, default=48)
    parser.add_argument("--width", type=int, default=128, help="of the vision encoder")
    parser.add_argument("--layers", type=int, default=4, help="of the vision encoder")
    parser.add_argument("--tokens", type=int, default=4, help="visual tokens for a picture")
    options = parser.parse_args()

    recipe = recipe_with_eyes(options.data, options.teacher, options.student, options.output, options)
    before = json.loads((recipe.work_folder / "results.json").read_text(encoding="utf-8"))["results"]["similarity"]
    results = run(recipe, resume=True).results
    state = json.loads((recipe.work_folder / "run.json").read_text(encoding="utf-8"))
    print(f"training: {state['stages'][-1]['metrics']['train_runtime'] / 60:.1f} minutes")
    images = results["images"]
    print(f"names of {images['captions']} emoji, {images['images']} Twemoji drawings")
    for k in (1, 10):
        chance = images[f"chance@{k}"]
        for dim, recall in images[f"recall@{k}"].items():
            times = f"{recall / chance:5.1f} times chance ({100 * chance:.3f} %)"
            print(f"recall@{k:<2} at {dim:>3} dimensions: {100 * recall:5.2f} %, {times}")
    same = results["similarity"]["scores"]["student"] == before["scores"]["student"]
    print("STS-B unchanged to the last digit:", same, results["similarity"]["scores"]["student"]["spearman"])


if __name__ == "__main__":
    main()

"""A text model learns to see: a picture is to get the vector of its caption, and the vectors of texts stay as they are.

    python examples/image_alignment.py
    python examples/image_alignment.py --vision google/siglip-base-patch16-224 --pictures my-pictures --steps 3000

Without arguments it draws its own pictures, "a red circle on blue", and starts from a vision encoder of random weights.
My-pictures is a folder with pictures and a metadata.csv with the columns file_name and caption.
"""

from __future__ import annotations

import argparse
from itertools import product

import torch
from datasets import Dataset, load_dataset
from PIL import Image, ImageDraw
from quickstart_data import minilm_folder
from sample import existing
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from st_distill import export, losses
from st_distill.evaluation import ImageRetrievalEvaluator
from st_distill.modules import Transformer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default=None, help="name or folder of a text model; MiniLM from its package")
parser.add_argument("--vision", default=None, help="name or folder of a vision encoder; a tiny one of random weights")
parser.add_argument("--pictures", type=existing, default=None, help="folder with metadata.csv; drawings made here")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--out", default="out/image-alignment")
options = parser.parse_args()


def drawings() -> Dataset:
    """A shape in the middle of a picture, for each shape and each two colours."""
    colours = ["red", "green", "blue", "yellow", "black", "white", "orange", "purple"]
    shapes = {"circle": 60, "square": 4, "triangle": 3}  # each as a polygon of so many sides
    rows = []
    for (shape, sides), colour, ground in product(shapes.items(), colours, colours):
        if colour != ground:
            picture = Image.new("RGB", (48, 48), ground)
            ImageDraw.Draw(picture).regular_polygon((24, 24, 16), sides, fill=colour)
            rows.append({"image": picture, "caption": f"a {colour} {shape} on {ground}"})
    return Dataset.from_list(rows).shuffle(seed=0)


tiny = {"model_type": "siglip_vision_model", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
tiny |= {"intermediate_size": 128, "image_size": 48, "patch_size": 8}
text_model = SentenceTransformer(options.model or str(minilm_folder()))
eyes = Transformer.from_encoders(text_model, options.vision or tiny)
student = SentenceTransformer(modules=[eyes, *list(text_model)[1:]], prompts=text_model.prompts)
eyes.train_vision_only()

data = drawings() if options.pictures is None else load_dataset("imagefolder", data_dir=options.pictures, split="train")
held_out, data = data.select(range(0, len(data), 8)), data.select([row for row in range(len(data)) if row % 8])
captions = text_model.encode(data["caption"][:], convert_to_tensor=True).cpu()  # the teacher: the student's own texts
dataset = data.select_columns(["image"]).add_column("label", captions.tolist())
finds = ImageRetrievalEvaluator(held_out["image"][:], held_out["caption"][:], write_csv=False)

trainer = SentenceTransformerTrainer(
    model=student,
    args=SentenceTransformerTrainingArguments(
        options.out, max_steps=options.steps, per_device_train_batch_size=32, learning_rate=1e-3, save_strategy="no"
    ),
    train_dataset=dataset,
    loss=losses.JasperDistill(student),
)
trainer.train()
export(student, options.out)

width = student.get_embedding_dimension()
scores = finds(student)
for rank in (1, 10):
    found, chance = scores[f"recall@{rank}_{width}"], scores[f"chance@{rank}"]
    print(
        f"Of {len(held_out)} new pictures, found by their captions within rank {rank}: {found:.0%} (chance {chance:.0%})"
    )
again = student.encode(data["caption"][:], convert_to_tensor=True).cpu()
print("Vectors of texts are the same bits as before:", torch.equal(again, captions))

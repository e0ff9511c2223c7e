from __future__ import annotations

import io
from xml.etree import ElementTree

import pytest
from PIL import Image

from st_distill.report.pictures import (
    COLOURS,
    bars,
    by_dimension,
    gallery_png,
    over_steps,
    printable,
    similarity_scatter,
)
from st_distill.report.samples import Retrieved, Thumbnail

SVG = "{http://www.w3.org/2000/svg}"


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_stand_out(scheme):
    paper = luminance(COLOURS["paper"][scheme])
    for name, colours in COLOURS.items():
        if name not in ("paper", "rule"):
            own = luminance(colours[scheme])
            assert (max(own, paper) + 0.05) / (min(own, paper) + 0.05) >= 4.5, name


def test_scores_by_dimension():
    picture = by_dimension(
        "retrieval",
        "Retrieval",
        "nDCG@10",
        {"student": {"64": 0.5, "8": 0.25}, "other": {"8": 0.75, "64": None}},
        chance=0.1,
    )
    assert picture.header == ("dimensions", "student", "other")
    assert picture.rows == (("64", "50.0", "-"), ("8", "25.0", "75.0"))
    assert picture.description == (
        "Line chart of nDCG@10 against dimensions: student 50.0 at 64 dimensions, 25.0 at 8; other 75.0 at 8 dimensions."
    )
    with Image.open(io.BytesIO(picture.png)) as png:
        assert png.size == (1080, 700)


@pytest.mark.parametrize("score", [None, float("nan")])
def test_scores_that_are_not_known_are_dashes(score):
    picture = by_dimension("similarity", "Similarity", "correlation", {"student": {"64": score, "8": score}})
    assert picture.rows == (("64", "-"), ("8", "-"))
    assert picture.description == "Line chart of correlation against dimensions: no score is known."


@pytest.mark.parametrize(("largest", "kind"), [(2_000.0, "Bar chart"), (2_001.0, "Chart")])
def test_one_value_does_not_dwarf_the_others(largest, kind):
    values = {"student": 400.0, "teacher": 100.0, "third": largest}
    picture = bars("speed", "Speed", "texts per second", values)
    assert picture.description == f"{kind} of texts per second: student 400; teacher 100; third {largest:,.0f}."
    drawn = {element.text for element in ElementTree.fromstring(picture.svg).iter(f"{SVG}text")}
    assert {"400", "100", f"{largest:,.0f}", *values} <= drawn


def test_the_drawing_follows_the_page():
    name = 'a "quoted" <b> & $x_$ \x07'
    picture = bars("speed", name, "texts per second", {name: 10.0, "_hidden": 20.0})
    root = ElementTree.fromstring(picture.svg)
    assert root.attrib["role"] == "img"
    assert "width" not in root.attrib
    title, description = root[0], root[1]
    assert (title.tag, title.text) == (f"{SVG}title", printable(name))
    assert root.attrib["aria-labelledby"] == f"{title.attrib['id']} {description.attrib['id']}"
    assert 'a "quoted" <b> & $x_$ \ufffd' in [element.text for element in root.iter(f"{SVG}text")]
    assert "var(--line1)" in picture.svg
    assert not any(light in picture.svg for light, _ in COLOURS.values())
    identities = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert all(identity.startswith("speed-") for identity in identities)
    for element in root.iter():
        if "href" in element.attrib:
            assert element.attrib["href"][1:] in identities


def test_terms_over_steps():
    history = [
        {"step": 1, "loss": 90.0, "cosine": 1.0, "similarity": None},
        {"step": 2, "loss": 2.0, "cosine": 0.5, "similarity": 1.5},
    ]
    picture = over_steps("stage-1", "Stage 1", history, ["loss", "cosine", "similarity", "triplet"])
    assert picture.header == ("step", "loss", "cosine", "similarity")
    assert picture.rows == (("1", "90", "1", "-"), ("2", "2", "0.5", "1.5"))
    assert "loss from 90 to 2; cosine from 1 to 0.5" in picture.description


def legend(picture) -> list[str]:
    return [element.text for element in ElementTree.fromstring(picture.svg).iter(f"{SVG}text")]


def test_a_single_term_is_one_line():
    history = [{"step": 1, "loss": 0.00002, "cosine": 0.0}, {"step": 2, "loss": 0.5, "cosine": 0.5}]
    picture = over_steps("stage-1", "Stage 1", history, ["loss", "cosine"])
    assert picture.header == ("step", "cosine, the total")
    assert picture.rows == (("1", "2e-05"), ("2", "0.5"))  # the total, which is not rounded
    assert picture.description.endswith("steps: cosine, the total from 2e-05 to 0.5.")
    assert "cosine, the total" in legend(picture)
    assert "total" not in legend(picture)
    # What another objective adds is in the total alone.
    history[1]["loss"] = 0.6
    picture = over_steps("stage-1", "Stage 1", history, ["loss", "cosine"])
    assert picture.header == ("step", "loss", "cosine")
    assert {"total", "cosine"} <= set(legend(picture))


def test_similarities_in_steps_of_a_tenth():
    groups = {"any two texts": [(0.05, 0.2), (0.05, 0.4), (1.0, 0.9)], "near ones": [(-0.95, -1.0)]}
    picture = similarity_scatter("similarities", "Similarities", groups, 0.5)
    assert picture.rows == (
        ("-1.0 to -0.9", "1", "-1.00"),
        ("0.0 to 0.1", "2", "0.30"),
        ("0.9 to 1.0", "1", "0.90"),
    )
    assert "4 pairs" in picture.description
    assert "x 100: 50.0" in picture.description


def thumbnail(colour: str, *, right: bool) -> Thumbnail:
    data = io.BytesIO()
    Image.new("RGB", (40, 20), colour).save(data, format="PNG")
    return Thumbnail(data.getvalue(), "a caption", 40, 20, right)


def test_the_gallery_frames_what_is_right():
    found = Retrieved("a red \x00 circle $", 1, (thumbnail("red", right=True), thumbnail("blue", right=False)), None)
    missed = Retrieved("a lime one", 7, (thumbnail("blue", right=False),), thumbnail("lime", right=True))
    with Image.open(io.BytesIO(gallery_png({"Found": [found], "Not found first": [missed]}))) as picture:
        pixels = picture.convert("RGB").getcolors(maxcolors=2**24)
        assert (picture.format, picture.width) == ("PNG", 1080)
    counts = {colour: count for count, colour in pixels}
    # Of four pictures, 176 pixels wide and half as high, two are blue.
    assert counts[(255, 0, 0)] == pytest.approx(176 * 88, rel=0.05)
    assert counts[(0, 0, 255)] == pytest.approx(2 * 176 * 88, rel=0.05)
    assert counts[(0, 255, 0)] == pytest.approx(176 * 88, rel=0.05)
    right, wrong = ((int(COLOURS[line][0][i : i + 2], 16) for i in (1, 3, 5)) for line in ("line3", "line2"))
    assert counts[tuple(right)] > counts[tuple(wrong)] * 0.9  # two frames each, the wrong ones dashed
    with Image.open(io.BytesIO(gallery_png({"Found": [found], "Not found first": []}))) as shorter:
        assert shorter.height < picture.height / 1.8

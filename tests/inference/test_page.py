"""The page of a run: whole without a network, small enough for a thousand images, safe against odd names."""

import base64
import io
import re

import numpy as np
from digar.inference.journal import DONE, FAILED, Outcome
from digar.inference.page import ROWS, report_page
from digar.volumes.pictures import label_colour, thumbnail
from matplotlib.colors import to_hex
from PIL import Image

LABELS = {1: "front", 2: "back"}
FACTS = {"images": 3, "done": 2, "failed": 1, "not_run": 0, "seconds": 4.2, "settings": {"overlap": 0.25}}


def outcome(name: str = "a.nii", picture: str = "") -> Outcome:
    return Outcome(
        name, DONE, mask="a_mask.nii.gz", shape=[4, 5, 6], volumes_ml={"front": 1.5, "back": 0.25},
        seconds={"reading": 0.5, "network": 1.0, "writing": 9.0}, thumbnail=picture,
    )  # fmt: skip


def picture(seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    image = rng.random((48, 60, 40)).astype(np.float32)
    mask = np.zeros((48, 60, 40), np.uint8)
    mask[10:30, 20:40, 5:25], mask[12:20, 22:30, 8:20] = 1, 2
    return thumbnail(image, mask, (1, 1, 1.5))


def test_a_thumbnail_shows_three_planes_with_the_labels_in_colour():
    with Image.open(io.BytesIO(base64.b64decode(picture()))) as shown:
        assert shown.format == "JPEG"
        assert shown.size == (330, 110)
        pixels = np.asarray(shown).astype(int)
    coloured = np.abs(pixels[..., 0] - pixels[..., 2]) > 40
    assert all(coloured[:, start : start + 110].any() for start in (0, 110, 220))
    assert not coloured.all()


def test_a_thumbnail_of_an_empty_mask_shows_the_middle():
    assert thumbnail(np.random.default_rng(0).random((9, 9, 9)), np.zeros((9, 9, 9), np.uint8), (1, 1, 1))


def test_a_page_of_a_thousand_pictured_images_is_below_15_megabytes():
    pictures = [picture(seed) for seed in range(4)]  # of noise: the largest JPEG there is
    page = report_page(FACTS, [outcome(f"{i}.nii", pictures[i % 4]) for i in range(1000)], LABELS)
    assert len(page.encode()) < 15e6
    assert page.count("<tr") == 1001
    assert page.count("data:image/jpeg") > 500


def test_a_page_asks_nothing_of_a_network():
    page = report_page(FACTS, [outcome(picture=picture())], LABELS)
    assert re.findall(r'(?:src|href)="(?!data:)|https?://|@import|url\(', page) == []


def test_names_and_reasons_are_text_not_code():
    page = report_page(FACTS, [Outcome("<script>a</script>.nii", FAILED, "<b>bad</b>")], {1: "<i>"})
    assert "<script>a" not in page
    assert "<b>bad" not in page
    assert "<i>" not in page
    assert 'class="failed"' in page


def test_without_thumbnails_there_is_no_picture_at_all():
    assert "image/jpeg" not in report_page(FACTS, [outcome()], LABELS)


def test_a_page_of_any_number_shows_what_failed_or_has_warnings_first_and_a_sample_of_the_others():
    many = [outcome(f"{i:06d}.nii") for i in range(20_000)]
    many[17_000] = outcome("odd.nii")
    many[17_000].warnings = ["odd"]
    many[19_000] = Outcome("bad.nii", FAILED, "is empty")
    page = report_page(FACTS, many, LABELS)
    assert len(page.encode()) < 15e6
    assert page.index("bad.nii") < page.index("odd.nii") < page.index("000000.nii")
    assert page.count('class="file"') == ROWS - 998  # 2 of note, and one in 5 of 19,998
    assert (
        "4002 of 20000 images: all that failed or have warnings, and one in 5 of the others; report.csv has all."
        in page
    )


def test_a_page_stays_small_where_all_have_failed_with_many_words():
    page = report_page(FACTS, [Outcome(f"{i}.nii", FAILED, "is empty " * 500) for i in range(6000)], LABELS)
    assert len(page.encode()) < 15e6
    shown = page.count('class="file"')
    assert f"The first {shown} of 6000 images, those that failed first, then those with warnings" in page
    page = report_page(FACTS, [Outcome(f"{i}.nii", FAILED, "is empty") for i in range(6000)], LABELS)
    assert page.count('class="file"') == ROWS


def test_the_counts_stand_at_the_top():
    page = report_page({**FACTS, "with_warnings": 7}, [outcome()], LABELS)
    assert "<b>2</b>done" in page
    assert "<b>7</b>with warnings" in page
    assert page.index("<b>7</b>") < page.index("<table>")


def test_pictures_of_a_former_run_are_not_shown_where_none_are_wanted():
    assert "image/jpeg" not in report_page(FACTS, [outcome(picture=picture())], LABELS, thumbnails=False)


def test_a_column_of_a_label_has_its_colour_which_is_that_of_the_pictures():
    page = report_page(FACTS, [outcome(picture=picture())], LABELS)
    for value, name in LABELS.items():
        assert f'<span class="key" style="background: {to_hex(label_colour(value))}"></span>{name}, ml' in page


def test_the_page_names_its_folders_and_its_use_and_tells_of_earlier_runs():
    facts = {**FACTS, "input": "/data/<ward>", "output": "/data/masks", "done_before": 2}
    page = report_page(facts, [outcome()], LABELS)
    assert "Images: /data/&lt;ward&gt;<br>Masks: /data/masks" in page
    assert "Research only: not a medical device" in page
    assert "2 images were finished before it" in page
    assert "finished before it" not in report_page({**facts, "done_before": 0}, [outcome()], LABELS)


def test_an_image_with_warnings_says_so_in_its_status():
    warned = outcome()
    warned.warnings = ["odd spacing"]
    assert '<td class="status">done, with warnings</td>' in report_page(FACTS, [warned], LABELS)

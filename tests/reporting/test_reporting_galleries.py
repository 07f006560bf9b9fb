import io

import pytest
from PIL import Image
from retrain_pages import png

from sslmedsam2.reporting.previews import make_gallery


def gallery(tmp_path, *scores):
    path = tmp_path / "p.png"
    path.write_bytes(png())
    return make_gallery([(score, f"case {score}", path) for score in scores], judged_by="Dice")


def scores(pictures):
    return [picture.score for picture in pictures]


def test_the_ends_are_shown_each_from_its_extreme(tmp_path):
    made = gallery(tmp_path, 0.5, 0.9, 0.1, 0.8, 0.2, 0.3, 0.7, 0.6)
    assert scores(made.worst) == [0.1, 0.2, 0.3]
    assert scores(made.best) == [0.9, 0.8, 0.7]


@pytest.mark.parametrize(
    ("given", "worst", "best"),
    [
        ((), [], []),
        ((0.4,), [], [0.4]),
        ((0.4, 0.2), [0.2], [0.4]),
        ((0.4, 0.2, 0.3), [0.2], [0.4, 0.3]),
        ((0.4, 0.2, 0.3, 0.5, 0.1), [0.1, 0.2], [0.5, 0.4, 0.3]),
    ],
)
def test_of_a_few_pictures_none_is_shown_twice(tmp_path, given, worst, best):
    made = gallery(tmp_path, *given)
    assert (scores(made.worst), scores(made.best)) == (worst, best)


def only(path):
    (picture,) = make_gallery([(0.5, "case", path)], judged_by="Dice").best
    return picture


def test_a_preview_is_taken_as_it_is(tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(png(width=1000, height=274))
    assert only(path).png == path.read_bytes()


def test_a_large_picture_is_made_smaller_in_its_proportions(tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(png(width=3600, height=1200))
    shown = Image.open(io.BytesIO(only(path).png))
    assert (shown.format, shown.size) == ("PNG", (1000, 333))
    assert shown.convert("L").getpixel((500, 166)) == pytest.approx(128, abs=2)


@pytest.mark.parametrize("content", [None, b"", b"GIF89a", png()[:60]])
def test_a_picture_that_cannot_be_read_leaves_its_score(tmp_path, caplog, content):
    path = tmp_path / "p.png"
    if content is not None:
        path.write_bytes(content)
    picture = only(path)
    assert (picture.title, picture.score, picture.png) == ("case", 0.5, None)
    assert "p.png: cannot be shown" in caplog.text

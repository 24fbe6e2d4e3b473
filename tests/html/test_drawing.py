import re

from audiovae_jax.html import drawing
from audiovae_jax.html.document import SERIES


def _draw(description="a drawing"):
    def plot(axes):
        axes.plot([0, 1, 2], [1, 3, 2], color=drawing.series(0))
        axes.plot([1], [2], "o", color=drawing.series(1))
        axes.imshow([[0, 1], [1, 0]], interpolation="none")

    return drawing.draw(plot, description)


def test_a_drawing_asks_for_nothing_and_has_no_names_that_two_could_share():
    svg = _draw()
    assert not re.search(r'\bid="|url\(|https?:|font-family|<defs|<!', svg)
    assert re.findall(r'href="(.{10})', svg) == ["data:image"]
    assert svg.count("<circle") == 1


def test_a_drawing_uses_the_colours_of_its_page():
    svg = _draw()
    assert "stroke: var(--series-0)" in svg
    assert "var(--muted)" in svg  # of the ticks' labels
    assert not re.search("#[0-9a-f]{6}", svg)
    assert drawing.series(len(SERIES)) == drawing.series(0)
    assert drawing.key(len(SERIES)) == drawing.key(0)


def test_a_description_is_plain_text():
    assert 'aria-label="&quot;&gt;&lt;b&gt; \\1 \\udcff"' in _draw('"><b> \\1 \udcff')

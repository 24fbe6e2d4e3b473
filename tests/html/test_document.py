import re

from audiovae_jax.html import document


def test_names_are_text_wherever_they_stand():
    name = '"><script>alert(1)</script>\udcff'
    page = document.document(
        name,
        document.facts([(name, name, name)]) + document.table([["a", "b"]], ["", name]) + document.breakable(name),
        "",
    )
    assert "<script>" not in page
    assert 'data-label="&quot;&gt;&lt;script&gt;' in page


def test_a_key_breaks_only_between_its_words():
    parts = document.breakable("optimizer.learning_rate<b>").split("<wbr>")
    assert parts == ["optimizer.", "learning_", "rate&lt;b&gt;"]
    assert document.breakable("_private.") == "_<wbr>private."


def test_every_colour_has_a_dark_form_and_phones_get_their_width():
    page = document.document("t", "")
    light, dark = page.split("prefers-color-scheme:dark")
    names = set(re.findall(r"(--[\w-]+):", dark.split("}")[0]))
    assert names == set(re.findall(r"var\((--[\w-]+)\)", page)) | {f"--series-{i}" for i in range(len(document.SERIES))}
    assert all(f"{name}:" in light for name in names)
    assert "width=device-width" in page


def test_cells_keep_their_column_on_a_phone():
    made = document.table([["a", "1"]], ["", "dB"])
    assert '<td>a</td><td data-label="dB">1</td>' in made
    assert "data-label" not in document.table([["a", "1"]])

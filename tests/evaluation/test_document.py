from rare_lightning.evaluation.document import picture, to_html
from rare_lightning.evaluation.tables import markdown_table

PAGE = "\n\n".join(
    [
        "# A & B",
        "The **best** by `level`, 1 < 2. <script>alert()</script>",
        markdown_table([{"name": "a|b", "Dice": "**0.9**"}, {"name": "<i>", "Dice": "0.8"}]),
        picture("one.svg", 'A "picture".'),
    ]
)


def test_a_bar_in_a_cell_does_not_begin_another():
    assert "| name | Dice |\n| --- | ---: |\n| a\\|b | **0.9** |\n| <i> | 0.8 |" in PAGE


def test_html_holds_its_pictures_and_escapes_names(tmp_path):
    (tmp_path / "one.svg").write_bytes(b"<svg/>")
    page = to_html(PAGE, tmp_path)
    assert "<title>A &amp; B</title>" in page
    assert "<p>The <strong>best</strong> by <code>level</code>, 1 &lt; 2. &lt;script&gt;" in page
    right = '<td style="text-align:right">'
    assert f"<td>a|b</td>\n{right}<strong>0.9</strong></td>\n</tr>\n<tr>\n<td>&lt;i&gt;</td>\n{right}0.8</td>" in page
    assert '<figure><img src="data:image/svg+xml;base64,PHN2Zy8+" alt="A &quot;picture&quot;.">' in page

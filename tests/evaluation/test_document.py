from rare_lightning.evaluation.document import Heading, Paragraph, Picture, Table, to_html, to_markdown

PAGE = [
    Heading("A & B", 1),
    Paragraph("The **best** by `level`, 1 < 2."),
    Table([{"name": "a|b", "Dice": "**0.9**"}, {"name": "<i>", "Dice": "0.8"}]),
    Picture("one.svg", "A picture."),
]


def test_markdown_links_its_pictures():
    assert to_markdown(PAGE) == (
        "# A & B\n\nThe **best** by `level`, 1 < 2.\n\n"
        "| name | Dice |\n| --- | ---: |\n| a\\|b | **0.9** |\n| <i> | 0.8 |\n\n![A picture.](one.svg)\n"
    )


def test_html_holds_its_pictures_and_escapes_names(tmp_path):
    (tmp_path / "one.svg").write_bytes(b"<svg/>")
    page = to_html(PAGE, tmp_path)
    assert "<title>A &amp; B</title>" in page
    assert "<p>The <b>best</b> by <code>level</code>, 1 &lt; 2.</p>" in page
    assert "<tr><td>a|b</td><td><b>0.9</b></td></tr>\n<tr><td>&lt;i&gt;</td><td>0.8</td></tr>" in page
    assert '<img src="data:image/svg+xml;base64,PHN2Zy8+" alt="A picture.">' in page

"""Charts: points inside their frames, round ticks, rows that add up, and labels that stay text."""

from __future__ import annotations

import re

import pytest

from vold_nemo.pages.charts import Series, Stack, element, line_chart, nice_ticks, stacked_rows


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.037), (0.4, 0.58), (-3, 12), (0, 0), (5, 5), (1e-6, 3e-6)])
def test_ticks_span_the_data_with_few_round_numbers(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 8


def test_a_chart_keeps_its_points_inside_its_frame():
    svg = line_chart("t", [Series("a", [(1.0, -3.0), (2.0, 9.0), (50.0, 4.0)], "red", smooth=3)])
    width, height = (float(x) for x in re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())
    for x, y in re.findall(r"([\d.-]+),([\d.-]+)", " ".join(re.findall(r'points="([^"]+)"', svg))):
        assert 0 <= float(x) <= width and 0 <= float(y) <= height


def test_rows_share_one_scale_and_the_limit_stands_where_its_amount_would():
    rows = [Stack("small", [("a", 1.0, "red"), ("b", 2.0, "blue")]), Stack("large", [("a", 8.0, "red")])]
    drawn = stacked_rows("t", rows, part="{:.2f} GiB", total="{:.1f}", limit=("one GPU", 10.0))
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", drawn)]
    (left, again) = (float(place) for place in re.findall(r"left:([\d.]+)%", drawn))
    assert widths == pytest.approx([left / 10, left / 5, 0.8 * left], abs=0.01) and left == again < 100
    assert "a: 1.00 GiB" in drawn and ">3.0<" in drawn and ">8.0<" in drawn and drawn.count('class="mark"') == 2
    alone = stacked_rows("t", rows, part="{:.1f}", total="{:.1f}")
    assert re.findall(r"width:([\d.]+)%", alone) == ["12.50", "25.00", "100.00"] and "left:" not in alone
    assert stacked_rows("t", [], part="{}", total="{}") == ""


def test_an_element_escapes_text_and_attributes_but_not_what_is_markup_already():
    inner = element("i", "<&>", title='"')
    assert inner == '<i title="&#34;">&lt;&amp;&gt;</i>'
    assert element("b", inner, " & ", stroke_width=2.25, class_="x") == f'<b stroke-width="2.2" class="x">{inner} &amp; </b>'

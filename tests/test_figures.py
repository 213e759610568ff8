"""Whatever a chart says is drawn in the page's colours, and told in words."""

import plotly.graph_objects as go
import pytest
from test_charts_kernels import COVERAGE
from test_charts_serving import RUN

from optimizer.charts import gains_info, kernels_info, parts_info, serving_info
from optimizer.figures import alternative, figure
from optimizer.marks import Lines, Stacks
from optimizer.serving import best_under
from optimizer.theme import DARK, LIGHT

INFOS = (
    serving_info(RUN, 2e6, best_under(RUN, 2e6)),
    serving_info(None),
    gains_info(RUN),
    gains_info(None),
    parts_info(COVERAGE),
    kernels_info(COVERAGE),
)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.title)
def test_a_chart_is_drawn_in_the_pages_colours_and_told_in_words(info: Lines | Stacks, dark: bool) -> None:
    drawn = figure(info, dark=dark)
    assert isinstance(drawn, go.Figure)
    drawn.to_json()
    assert drawn.layout.template.layout.font.color == (DARK if dark else LIGHT).text
    assert alternative(info).startswith(info.title)

"""Statistics of activations in one pass: each has a state, and two states of disjoint rows merge into that of all rows."""

from activarium.summaries._co_activation import CoActivation as CoActivation
from activarium.summaries._count import Count as Count
from activarium.summaries._gram import Gram as Gram
from activarium.summaries._magnitudes import Magnitudes as Magnitudes
from activarium.summaries._moments import Moments as Moments
from activarium.summaries._quantiles import Quantiles as Quantiles
from activarium.summaries._top_rows import TopRows as TopRows
from activarium.summaries._top_rows import context as context
from activarium.summaries.base import Summary as Summary
from activarium.summaries.survey import Survey as Survey
from activarium.summaries.survey import load_survey as load_survey

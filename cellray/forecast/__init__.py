"""What a study will cost and can show, from a probe that takes a few seconds a loss."""

from cellray.forecast.costs import Forecast, Kind, forecast
from cellray.forecast.effect import Effect
from cellray.forecast.further import Further, further_trials
from cellray.forecast.room import Machine, at_once, memory_trouble, this_machine

__all__ = [
    "Effect",
    "Forecast",
    "Further",
    "Kind",
    "Machine",
    "at_once",
    "forecast",
    "further_trials",
    "memory_trouble",
    "this_machine",
]

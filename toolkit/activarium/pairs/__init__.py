"""Clean and corrupted inputs, aligned row by row, with the metric they are judged by. `act.pairs(…)` makes them from your own."""

from activarium.pairs._pairs import Pairs as Pairs
from activarium.pairs._pairs import pairs as pairs

"""Clean and corrupted inputs, aligned row by row, with the metric they are judged by. `act.pairs(…)` makes them from your own."""

from activarium.pairs._images import images as images
from activarium.pairs._ioi import ioi as ioi
from activarium.pairs._pairs import Pairs as Pairs
from activarium.pairs._pairs import pairs as pairs
from activarium.pairs._words import replace_tokens as replace_tokens
from activarium.pairs._words import swap_words as swap_words

"""Dictionaries: features of a site, what they are made of and what they write."""

from activarium.dictionaries import controls
from activarium.dictionaries.codes import Codes
from activarium.dictionaries.design import Design, Origin
from activarium.dictionaries.read import load, save
from activarium.dictionaries.recipe import Recipe
from activarium.dictionaries.sae import SAE
from activarium.dictionaries.training import Trained, train

__all__ = ["SAE", "Codes", "Design", "Origin", "Recipe", "Trained", "controls", "load", "save", "train"]

"""Dictionaries: features of a site, what they are made of and what they write."""

from activarium.dictionaries.codes import Codes
from activarium.dictionaries.design import Design, Origin
from activarium.dictionaries.read import load, save
from activarium.dictionaries.sae import SAE

__all__ = ["SAE", "Codes", "Design", "Origin", "load", "save"]

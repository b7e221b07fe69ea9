"""Dictionaries: features of a site, what they are made of and what they write."""

from activarium.dictionaries import controls
from activarium.dictionaries.adopt import as_dictionary
from activarium.dictionaries.coded import CodedRows, LiveCodes, rows_for
from activarium.dictionaries.codes import Codes
from activarium.dictionaries.design import Design, Origin
from activarium.dictionaries.dictionary import FeatureDictionary
from activarium.dictionaries.fingerprint import fingerprint
from activarium.dictionaries.kept import KeptCodes, keep_codes, open_codes
from activarium.dictionaries.read import load, save
from activarium.dictionaries.recipe import Recipe
from activarium.dictionaries.rows import RowSource
from activarium.dictionaries.sae import SAE
from activarium.dictionaries.supervised import SupervisedDictionary
from activarium.dictionaries.training import Trained, train

__all__ = [
    "SAE",
    "CodedRows",
    "Codes",
    "Design",
    "FeatureDictionary",
    "KeptCodes",
    "LiveCodes",
    "Origin",
    "Recipe",
    "RowSource",
    "SupervisedDictionary",
    "Trained",
    "as_dictionary",
    "controls",
    "fingerprint",
    "keep_codes",
    "load",
    "open_codes",
    "rows_for",
    "save",
    "train",
]

"""The room that knows models: load or wrap one, read and edit its named sites, prove that they are right."""

from activarium.capture._certify import Certificate, Check, certify
from activarium.capture._dictionary_site import DictionarySite, site_of
from activarium.capture._inputs import Inputs, Space
from activarium.capture._lens import LensRunner
from activarium.capture._load import load, wrap
from activarium.capture._runner import TorchRunner
from activarium.capture._sites import Place, Site, SiteTable
from activarium.lens_names import lens_alias, lens_name

__all__ = [
    "Certificate",
    "Check",
    "DictionarySite",
    "Inputs",
    "LensRunner",
    "Place",
    "Site",
    "SiteTable",
    "Space",
    "TorchRunner",
    "certify",
    "lens_alias",
    "lens_name",
    "load",
    "site_of",
    "wrap",
]

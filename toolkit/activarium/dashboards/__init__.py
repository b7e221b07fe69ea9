"""Dashboards: a page for every feature of a dictionary, built in two passes over the rows and read page by page from a folder."""

from activarium.dashboards.making import build
from activarium.dashboards.pages import FeaturePages, open_pages
from activarium.dashboards.sources import source_shares

__all__ = ["FeaturePages", "build", "open_pages", "source_shares"]

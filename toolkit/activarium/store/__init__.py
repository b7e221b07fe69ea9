"""Stores: captures on the disk that a killed process cannot spoil and that read like any Recording."""

from activarium.store._constants import Constants as Constants
from activarium.store._constants import describe as describe
from activarium.store._derived import Captured as Captured
from activarium.store._files import Portion as Portion
from activarium.store._files import PortionWriter as PortionWriter
from activarium.store._folder import named as named
from activarium.store._format import SHARD_BYTES as SHARD_BYTES
from activarium.store._format import AttentionEntry as AttentionEntry
from activarium.store._format import Manifest as Manifest
from activarium.store._format import PlanEntry as PlanEntry
from activarium.store._format import SiteEntry as SiteEntry
from activarium.store._format import same_capture as same_capture
from activarium.store._format import torch_dtype as torch_dtype
from activarium.store._pieces import finite as finite
from activarium.store._pieces import piece_of as piece_of
from activarium.store._read import Store as Store
from activarium.store._read import open_store as open_store
from activarium.store._write import StoreWriter as StoreWriter

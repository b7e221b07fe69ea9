"""Few numbers of the residual stream that are thousands of times larger than the rest."""

from activarium.analyses.massive.persistence import persistent_dims as persistent_dims

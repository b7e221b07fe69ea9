"""Every model class of the installed transformers, tiny and certified: what `activarium doctor --all` walks."""

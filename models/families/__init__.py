"""One file a family; see `isoformer.models.registry`."""

"""Stage two: the spatial and temporal ConvNets, trained from shards."""

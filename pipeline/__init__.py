"""What every stage shares: datasets, paths, video decoding, the flow codec, shards and outcomes."""

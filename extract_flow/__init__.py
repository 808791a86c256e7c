"""Stage one: dense optical flow and frames from videos into shards."""

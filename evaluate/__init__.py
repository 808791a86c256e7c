"""Stage three: 25 frames x 10 crops, scores by video, fusion, metrics and the report."""

"""The web page of linkspand: a picture of the host's networks, read-only, beside the metrics."""

"""Training on a workstation: from a recording to a quantized, judged bundle. Never imported by a gateway. Needs no torch."""

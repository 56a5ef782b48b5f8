"""The zoo's anomaly detector of the simulated pump station: recordings, recipe, bundle and model card."""

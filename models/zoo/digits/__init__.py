"""The zoo's vision example, handwritten digits: data, network, recipe, bundle, samples and model card."""

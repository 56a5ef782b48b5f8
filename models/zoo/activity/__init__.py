"""The zoo's recipe for activity from a smartwatch: recipe and model card. No bundle is kept here: see MODEL_CARD.md."""

"""Training a model, and training it again on some of its documents."""

"""The demo pair of models and the one-command demo network."""

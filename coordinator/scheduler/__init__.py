"""What the engine does next. Pure."""

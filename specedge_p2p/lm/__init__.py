"""Language models behind one port; the only home of torch."""

"""Draft trees: growth, acceptance, reroot, binding. Pure."""

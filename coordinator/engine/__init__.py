"""The engine: verifies trees with the target model in a process of its own."""

"""The coordinator: owns target model, sessions and ledger."""

"""The volunteer node: drafts for users' sessions."""

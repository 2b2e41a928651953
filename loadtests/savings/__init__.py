"""What the savings save: a seeded day of chat, replayed with each policy on and off."""

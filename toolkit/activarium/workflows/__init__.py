"""What spans rooms: capture to a store, and what is made of it."""

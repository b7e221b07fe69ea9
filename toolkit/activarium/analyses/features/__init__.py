"""What dictionaries find: how well they stand for a site, what their features mean, and what they leave out."""

"""A comparison as one HTML file, with its figures as files."""

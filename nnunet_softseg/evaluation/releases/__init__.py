"""Two releases of a model on one frozen set of people: areas, statistics, limits, a table updated."""

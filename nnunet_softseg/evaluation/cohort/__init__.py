"""A BIDS folder of many people: derivatives of each, and one table and page of all."""

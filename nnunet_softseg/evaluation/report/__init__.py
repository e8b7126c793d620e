"""A comparison as one HTML file, with its figures as files.

The way of the data: wording (numbers and verdicts as text) -> drawing (colours, groups of values) -> figures
(all of them, as files and in the page) -> tables; worst cases; writing (the page).
"""

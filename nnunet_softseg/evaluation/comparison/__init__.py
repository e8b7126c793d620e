"""Methods against one reference: who is nearer, and does the difference hold.

The way of the data: scores (the measures) -> paired statistics (tests and intervals of plain arrays) ->
verdict -> leaderboard (subjects, ranks, winners) -> contrast effects (areas over contrasts, agreement) ->
result (all tables).
"""

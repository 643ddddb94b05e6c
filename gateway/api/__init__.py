"""HTTP in, HTTP out: the only place that imports Litestar.

`params` and `cursors` read what comes in, `calls` answers lists, `problems` has every failure's status code, `openapi`
describes it all, `reference` shows it to people, `repeats` sends again what is asked for again, `edge` wraps it,
`routes` puts it together.
"""

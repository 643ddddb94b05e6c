"""HTTP in, HTTP out: the only place that imports Litestar.

`params` names what may be asked; `wanted`, `moments`, `filters` and `cursors` read it; `negotiation` how to answer.
`answers` is what all answers about calls share; `calls`, `exports` and `summaries` give them, `recordings` what their
`links` lead to; `signed` is what links and cursors are made of. `problems` has every failure's status code, `openapi`
describes it all, `reference` shows it to people, `repeats` answers what was just answered, `edge` wraps it, `routes`
puts it together.
"""

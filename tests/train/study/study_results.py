"""Results of studies, as `results.jsonl` has them, of runs that nobody has trained."""


def result(arm, seed, loss, **fields):
    common = {"evaluated_tokens": 100, "curve": [[2, 3.0], [4, loss]], "parameters": 1000, "active_parameters": 900}
    common |= {"flops_per_token": 2e6, "tokens": 5000, "own_tokens": 2000, "seconds": 4.0, "routers": {}, "after": {}}
    return {"arm": arm, "seed": seed, "loss": loss, **common, **fields}

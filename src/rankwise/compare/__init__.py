"""Which method, on these data? Methods × tasks × budgets × seeds, each cell an ordinary run, and an answer in words."""

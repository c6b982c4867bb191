"""The Recurrent Attention Model of Mnih et al. 2014: the fast form of examples/reinforce.py.

Read that file first. It is the whole algorithm by plain autograd; tests/test_reinforce_example.py holds both forms to
the same losses and gradients. Here the same steps are `network`, `rollout` (one episode in each lane), `losses`,
`learner` (from scenes to a loss) and `training`. `unrolled` writes the gradient out, and `graph` records an update for
a GPU; both are for speed alone.
"""

"""What is run with nn_adv: the experiments, the durable store of their results and the report written from it."""

"""From a model and a data file to a trained adapter: data, metrics, trainers, run folders."""

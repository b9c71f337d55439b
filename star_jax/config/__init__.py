"""The config of an experiment: mutable in files and flags, frozen dataclasses behind them."""

from star_jax.config.checks import as_config as as_config
from star_jax.config.checks import default_config as default_config
from star_jax.config.checks import with_values as with_values
from star_jax.config.experiment import Config as Config

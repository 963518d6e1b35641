"""Configurations of tiny models: of each family a plain one and one with unusual settings."""

from tests.helpers.tiny_configs import gemma, gpt, llama, mixtures

CONFIGS = llama.CONFIGS | gemma.CONFIGS | gpt.CONFIGS | mixtures.CONFIGS

"""Open X-Embodiment data, from RLDS shards to a fine-tuned vision-language-action model."""

__version__ = "0.1.0"

"""The same with the other attention; neither is always the faster."""

import transformers_engine


class Engine(transformers_engine.Engine):
    attention = "eager"

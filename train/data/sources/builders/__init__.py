"""TFDS builders of our own: what TFDS lacks, or cannot prepare by itself. None of them needs TensorFlow."""

from train.data.sources.builders.openwebtext import OpenWebText
from train.data.sources.builders.xsum import Xsum

BUILDERS = {builder.name: builder for builder in (OpenWebText, Xsum)}

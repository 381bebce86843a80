"""Several runs on one page, `python -m train.report RUN RUN ...`: curves on common axes, what their configurations
differ in, final figures, and their routing side by side."""

"""What is done without serving: bulk classification, evaluation, images of a network."""

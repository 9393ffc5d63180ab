"""What is done without serving: bulk classification, evaluation, pictures of a network."""

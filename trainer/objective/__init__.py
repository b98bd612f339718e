"""What a training run optimises: the loss of an example and the score of a row."""

"""What comes after pre-training, as recipes of training: each file makes the data and names the objective of one."""

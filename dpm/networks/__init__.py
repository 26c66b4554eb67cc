"""Networks: the paper's own (`paper`), ours (`denoisers`, `unet`), and the layers they share (`layers`)."""

"""Figures that others have published, with where they stand. None is ours."""

MNIST_NATS = [  # model, authors, binarization, nats
    ("NADE", "Larochelle and Murray, 2011", "static", 88.33),
    ("MADE, 32 masks", "Germain et al., 2015", "static", 86.64),
    ("DARN, a bound", "Gregor et al., 2014", "static", 84.13),
    ("PixelCNN", "van den Oord et al., 2016", "static", 81.30),
    ("PixelRNN", "van den Oord et al., 2016", "static", 79.20),
    ("PixelSNAIL", "Chen et al., 2017", "dynamic", 78.61),
]
BINARY_SETS = {"dna": "EoNADE -82.31", "mushrooms": "EoNADE -9.68"}

# Mean test log-likelihood in nats on the splits of Papamakarios et al. (2017), as the review by Kobyzev et al. (2021, table 3) lists them.
TABLE_FLOWS_HEAD = ["model", "POWER (6)", "GAS (8)", "HEPMASS (21)", "MINIBOONE (43)", "BSDS300 (63)"]
TABLE_FLOWS = [
    ("RealNVP (10)", 0.17, 8.33, -18.71, -13.84, 153.28),
    ("Glow", 0.17, 8.15, -18.92, -11.35, 155.07),
    ("MAF (10)", 0.24, 10.08, -17.73, -12.24, 154.93),
    ("MAF with mixtures", 0.30, 9.59, -17.39, -11.68, 156.36),
    ("FFJORD", 0.46, 8.59, -14.92, -10.43, 157.40),
    ("NAF (5)", 0.62, 11.91, -15.09, -8.86, 157.73),
    ("UMNN", 0.63, 10.89, -13.99, -9.67, 157.98),
    ("SOS (7)", 0.60, 11.99, -15.15, -8.90, 157.48),
    ("cubic splines", 0.65, 13.14, -14.59, -9.06, 157.24),
    ("RQ-NSF, coupling", 0.64, 13.09, -14.75, -9.67, 157.54),
    ("RQ-NSF, autoregressive", 0.66, 13.09, -14.01, -9.22, 157.31),
]

# Test bits/dim of CIFAR-10, bounds of diffusion models, as published.
IMAGE_DIFFUSION = [("DDPM", 3.70), ("Improved DDPM", 2.94), ("VDM", 2.65), ("MuLAN", 2.55)]

# Test bits/dim of 8-bit images, the same review (table 5), and what is named.
IMAGE_FLOWS_HEAD = ["model", "MNIST", "CIFAR-10", "ImageNet 32", "dequantization"]
IMAGE_FLOWS = [
    ("RealNVP", 1.06, 3.49, 4.28, "uniform"),
    ("Glow", 1.05, 3.35, 4.09, "uniform"),
    ("MAF", 1.89, 4.31, None, "uniform"),
    ("FFJORD", 0.99, 3.40, None, "uniform"),
    ("Residual flow", 0.97, 3.28, 4.01, "uniform"),
    ("RQ-NSF, coupling", None, 3.38, None, "uniform"),
    ("Flow++ (Song et al., 2021, table 2)", None, 3.29, None, "uniform"),
    ("Flow++", None, 3.08, 3.86, "variational"),
]

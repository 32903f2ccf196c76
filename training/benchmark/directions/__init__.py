"""In which direction do the rows of Tables 2, 4, 5, 6 and 8 differ? 40 minutes on two CPU cores, at miniature scale.

One detector is shared and frozen: its features and its boxes are computed once. Only mask heads are trained, each from
the detector's own coarse mask weights, on generated scenes, with masks of half the paper's side. So two rows differ in
nothing but what their table compares, and little training shows it. Differences are paired by image and by seed.
"""

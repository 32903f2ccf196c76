"""In which direction do the rows of Tables 2, 4, 5, 6 and 8 differ? Half an hour on a CPU, at miniature scale.

One detector is shared and frozen: its features and its boxes are computed once. Only mask heads are trained, each from
the detector's own coarse mask weights, on generated scenes, with masks of half the paper's side. So two rows differ in
nothing but what their table compares, and little training shows it. Differences are paired by image and by seed.

=============  ====================================================================
``variants``   which rows are compared with which, and each row's configuration
``shared``     the frozen detector's features, boxes and truths, on disk
``teaching``   training a mask head on them
``looking``    the masks that a trained head predicts, as COCO results
``planning``   a run's setting, its trainings, and the files that keep them
``starting``   the coarse mask that all rows start from
``fitting``    how many steps fit into the minutes
``pairing``    differences with intervals over images and seeds
``running``    all of it, resumable, in several processes
``report``     report.json, report.md and the picture
=============  ====================================================================
"""

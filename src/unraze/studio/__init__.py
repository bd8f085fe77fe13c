"""The studio: a local web page to watch, sample, compare and understand runs in.

    server    binds, says its address, opens the browser      guard     who may ask
    app       the routes, by the rooms below                  events    what tabs are told
    library   the runs of a folder, by identifier             held      models and images in memory
    work      the one queue of long work                      tasks/    what the queue does
    trainings processes of `unraze train` and `resume`        looks     what is answered at once
    asked     what a request may say                          page/     the page: plain modules

The page speaks to it under /api/ alone. No path from a request ever opens a file: runs, pictures
and uploads have identifiers, and folders of images are named at the command line.
"""

"""Images to train on: data sets, files, the checks they pass, and the feed that brings them to the device."""

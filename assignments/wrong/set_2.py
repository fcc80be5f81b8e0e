from assignments.wrong import Wrong

WRONG: list[Wrong] = []

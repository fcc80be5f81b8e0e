"""What is kept of what a cell writes."""

from nbformat import NotebookNode
from nbformat.v4 import new_output, output_from_msg

KEPT_TEXT, KEPT_DATA = 20_000, 2_000_000  # characters of a cell's text and of one picture that are kept


class Outputs:
    """A cell's outputs as far as they are kept: streams joined, and not more than is fit to be read."""

    def __init__(self):
        self.kept: list[NotebookNode] = []
        self.size, self.dropped = 0, False

    def add(self, message: dict) -> None:
        if message["msg_type"] not in ("stream", "display_data", "execute_result", "error"):
            return
        output = output_from_msg(message)
        if output.output_type == "stream":
            room = max(0, KEPT_TEXT - self.size)
            self.size += len(output.text)
            self.dropped |= len(output.text) > room
            if len(output.text) > room:
                output.text = output.text[:room] + ("\n[…]\n" if room else "")
            last = self.kept[-1] if self.kept else None
            if last is not None and last.output_type == "stream" and last.name == output.name:
                last.text += output.text
            elif output.text:
                self.kept.append(output)
        elif output.output_type == "error":
            output.traceback = [line[:2000] for line in output.traceback[-12:]]
            output.evalue = output.evalue[:2000]
            self.kept.append(output)
        else:
            for kind, data in list(output.data.items()):
                if len(str(data)) > (KEPT_DATA if kind.startswith("image/") else KEPT_TEXT):
                    del output.data[kind]
                    self.dropped = True
            if len(self.kept) < 200:
                self.kept.append(output)
            else:
                self.dropped = True


def failed(name: str, text: str) -> NotebookNode:
    """An error that the grader itself reports."""
    return new_output("error", ename=name, evalue=text, traceback=[f"{name}: {text}"])

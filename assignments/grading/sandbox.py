"""Runs in the kernel before the first cell: keeps an eye on what the student's code does to what grades it.

It is sent to the kernel as text, and answers the grader's requests: what was patched is named and put back, and no name
of the notebook's is used. Files of the course are not opened, other programs are named. This stops slips and simple
tricks; code that wants to get round it can, because it runs in the same process: the teacher's page says how to isolate
a class.
"""

import builtins
import importlib
import inspect
import os
import pkgutil
import sys
import types

CODE = ("__code__", "__defaults__", "__kwdefaults__")
# Modules whose functions decide what a test says; those of the library are added.
WATCHED = ("torch", "torch.linalg", "torch.testing", "torch.nn.functional", "numpy", "numpy.linalg", "math", "json")
UNSTEADY = ("_", "input", "get_ipython", "exit", "quit", "__doc__", "__abstractmethods__")  # Jupyter sets them
CLASSES = ("torch.Tensor", "torch.Generator", "torch.nn.Module")


class Sandbox:
    """What stood where before the student's code ran."""

    def __init__(self, number: int, forbidden: list[str], flags: str, memory: int):
        self.said: list[str] = []
        self.flags = os.open(flags, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        importlib.import_module("ddpm_lib.homework.hidden")
        importlib.import_module(f"ddpm_lib.homework.answers_{number}")
        checks = importlib.import_module("ddpm_lib.checks")
        for module in pkgutil.walk_packages(importlib.import_module("ddpm_lib").__path__, "ddpm_lib."):
            importlib.import_module(module.name)
        library = [name for name in sys.modules if name.startswith("ddpm_lib")]
        self.kept: list[tuple[object, dict]] = [(builtins, dict(vars(builtins)))]
        self.codes: list[tuple[types.FunctionType, tuple]] = []
        for name in (*WATCHED, *library):
            module = importlib.import_module(name)
            self.keep(module)
            for value in vars(module).values():
                if inspect.isclass(value) and value.__module__.startswith("ddpm_lib"):
                    self.keep(value)
        for name in CLASSES:
            module, _, attribute = name.rpartition(".")
            self.keep(getattr(importlib.import_module(module), attribute))
        problems = importlib.import_module("ddpm_lib.homework.problem").PROBLEMS
        records = [*problems.values(), *checks.load_all().values()]
        records += [identity for problem in problems.values() for identity in problem.identities]
        self.records = [(record, {k: list(v) if isinstance(v, list) else v for k, v in vars(record).items()})
                        for record in records]  # fmt: skip
        for record in records:
            self.keep_code(getattr(record, "measure", None))
        self.grade = sys.modules["ddpm_lib.homework.hidden"].grade
        self.secret = {key: os.environ.pop(key, "") for key in ("DDPM_SALT", "DDPM_CLASS")}
        self.limit(memory)
        sys.addaudithook(self.hook(forbidden))

    def serve(self, kernel: object) -> None:
        """From now on the kernel answers requests to grade."""
        send, socket, names = kernel.session.send, kernel.iopub_socket, kernel.shell.user_ns

        def answer(_stream, _ident, parent: dict) -> None:
            self.report()
            problem, name = parent["content"]["problem"], parent["content"]["answer"]
            os.environ.update(self.secret)
            try:
                if name in names:
                    told = {"results": [dict(vars(result)) for result in self.grade(problem, names[name]).results]}
                else:
                    told = {"error": f"There is no {name}: the cell that defines it did not run, or failed."}
            except BaseException as error:
                told = {"error": f"The test ended early: {type(error).__name__}"}
            finally:
                for key in self.secret:
                    os.environ.pop(key, None)
            send(socket, "grade_result", told, parent=parent)

        kernel.shell_handlers["grade_request"] = answer

    def keep(self, owner: object) -> None:
        """The callables of a module, or everything in a class."""
        everything = inspect.isclass(owner)
        found = {k: v for k, v in vars(owner).items() if everything or callable(v)}
        self.kept.append((owner, found))
        for value in found.values():
            self.keep_code(getattr(value, "__func__", value))

    def keep_code(self, function: object) -> None:
        if isinstance(function, types.FunctionType):
            self.codes.append((function, tuple(getattr(function, name) for name in CODE)))

    def report(self) -> list[str]:
        """What was changed since the start, put back; each thing is named once."""
        for owner, before in self.kept:
            where = getattr(owner, "__name__", "") if owner is not builtins else "builtins"
            for name, value in before.items():
                if vars(owner).get(name) is not value and name not in UNSTEADY:
                    self.put_back(owner, name, value, where)
            if inspect.isclass(owner):
                for name in vars(owner).keys() - before.keys():
                    if callable(vars(owner)[name]) and hasattr(owner.__mro__[1], name):  # hides what was inherited
                        self.say(f"{where}.{name} was changed")
                        delattr(owner, name)
        for function, before in self.codes:
            if tuple(getattr(function, name) for name in CODE) != before:
                self.say(f"the code of {function.__qualname__} was changed")
                for name, value in zip(CODE, before, strict=True):
                    setattr(function, name, value)
        for record, before in self.records:
            now = vars(record)
            if any(now.get(k) is not v and now.get(k) != v for k, v in before.items()):
                self.say(f"the check {record.name} was changed")
                now.update({k: list(v) if isinstance(v, list) else v for k, v in before.items()})
        return self.said

    def put_back(self, owner: object, name: str, value: object, where: str) -> None:
        try:
            setattr(owner, name, value)
        except (AttributeError, TypeError):
            return  # what cannot be set was not set by the student
        self.say(f"{where}.{name} was changed")

    def say(self, text: str) -> None:
        if text not in self.said:
            self.said.append(text)
            os.write(self.flags, (text + "\n").encode("utf-8", "replace"))

    def hook(self, forbidden: list[str]):
        """An audit hook, which Python lets nobody take out again."""
        say, path_of, starts, text, own = self.say, os.path.abspath, str.startswith, os.fsdecode, os.getpid()
        programs = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn")
        files = ("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "shutil.copyfile", "sqlite3.connect")

        def watch(event: str, args: tuple) -> None:
            if event in files and args and isinstance(args[0], (str, bytes)):
                path = path_of(text(args[0]))
                if any(starts(path, place) for place in forbidden):
                    say(f"tried to open {path}")
                    raise PermissionError("this belongs to the grader")
            elif event in ("os.kill", "os.killpg") and args[0] not in (own, 0) and args[1]:
                say("tried to end another process")
                raise PermissionError("this process belongs to the grader")
            elif event in programs:
                say(f"started a program: {args[:2]!r}"[:200])

        return watch

    @staticmethod
    def limit(memory: int) -> None:
        """At most so many bytes of memory, and small files, where the system can be told so."""
        try:
            import resource
        except ImportError:  # Windows
            return
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000_000, 500_000_000))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

"""Runs in the kernel before the first cell: keeps an eye on what the student's code does to what grades it.

It is sent to the kernel as text, and answers the grader's requests: what was patched is named and put back, and no name
of the notebook's is used. Files of the course are not opened, files of the machine not written, other programs are
named. This stops slips and simple tricks; code that wants to get round it can, because it runs in the same process: the
teacher's page says how to isolate a class.
"""

import builtins
import importlib
import inspect
import os
import pkgutil
import sys
import types
import warnings

CODE = ("__code__", "__defaults__", "__kwdefaults__")
# Modules whose functions decide what a test says; those of the library are added.
WATCHED = ("torch", "torch.linalg", "torch.special", "torch.autograd", "torch.testing", "torch.nn.functional",
           "torch.overrides", "numpy", "numpy.linalg", "math", "json", "hashlib", "inspect", "functools")  # fmt: skip
DATA = ("ddpm_lib.homework", "ddpm_lib.checks")  # here also what is no function decides
SIGNATURE = "_SIGNED"  # the student's own to write
UNSTEADY = ("_", "input", "get_ipython", "exit", "quit", "__doc__", "__abstractmethods__")  # Jupyter sets them
UNSTEADY += ("manual_seed", "Storage")  # torch itself sets them
CLASSES = ("torch.Tensor", "torch.Generator", "torch.nn.Module")


class Sandbox:
    """What stood where before the student's code ran."""

    def __init__(
        self, number: int, student: str, own: str, forbidden: list[str], kept: list[str], flags: str, memory: int
    ):
        """own: the folder that may be written, save the files in `kept`; forbidden: beginnings of paths that are not
        opened at all."""
        self.said: list[str] = []
        self.student = student
        self.flags = os.open(flags, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        importlib.import_module("ddpm_lib.homework.hidden")
        checks = importlib.import_module("ddpm_lib.checks")
        for module in pkgutil.walk_packages(importlib.import_module("ddpm_lib").__path__, "ddpm_lib."):
            importlib.import_module(module.name)
        library = [name for name in sys.modules if name.startswith("ddpm_lib")]
        self.kept: list[tuple[object, dict]] = [(builtins, dict(vars(builtins)))]
        self.codes: list[tuple[types.FunctionType, tuple]] = []
        self.contents: list[tuple[str, dict | list, dict | list]] = []
        self.modules = {where: importlib.import_module(where) for where in (*WATCHED, *library)}
        for where, module in self.modules.items():
            self.keep(module, where.startswith(DATA))
            for value in vars(module).values():
                if inspect.isclass(value) and value.__module__.startswith("ddpm_lib"):
                    self.keep(value)
        for name in CLASSES:
            module, _, attribute = name.rpartition(".")
            self.keep(getattr(importlib.import_module(module), attribute))
        self.device = importlib.import_module("torch.utils._device").DeviceContext
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
        sys.addaudithook(self.hook(own, forbidden, kept))

    def serve(self, kernel: object) -> None:
        """From now on the kernel answers requests to grade."""
        send, socket, names = kernel.session.send, kernel.iopub_socket, kernel.shell.user_ns
        kernel.shell.ask_exit = lambda: None  # a cell `exit` ends nothing here

        def answer(_stream, _ident, parent: dict) -> None:
            self.report()
            problem, name = parent["content"]["problem"], parent["content"]["answer"]
            os.environ.update(self.secret)
            try:
                if name in names:
                    told = {"results": [dict(vars(result)) for result in self.steadily(problem, names[name]).results]}
                else:
                    told = {"error": f"There is no {name}: the cell that defines it did not run, or failed."}
            except BaseException as error:
                told = {"error": f"The test ended early: {type(error).__name__}"}
            finally:
                for key in self.secret:
                    os.environ.pop(key, None)
            self.report()
            send(socket, "grade_result", told, parent=parent)

        kernel.shell_handlers["grade_request"] = answer

    def steadily(self, number: str, answer: object) -> object:
        """The points of an answer. What it changes while it is tested, it changes for no other."""
        torch, numpy = self.modules["torch"], self.modules["numpy"]
        strictly = torch._C._set_deterministic_algorithms  # without the import of what it tells of it
        dtype, strict = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
        try:
            strictly(False)
            with warnings.catch_warnings(), numpy.errstate(all="warn"), torch.enable_grad():
                warnings.simplefilter("ignore")
                return self.grade(number, answer)
        finally:
            torch.set_default_dtype(dtype)
            strictly(strict)

    def keep(self, owner: object, data: bool = False) -> None:
        """The callables of a module, with its data where they count, or everything in a class."""
        everything = inspect.isclass(owner)
        found = {k: v for k, v in vars(owner).items() if everything or callable(v) or (data and k[:2] != "__")}
        found.pop(SIGNATURE, None)
        self.kept.append((owner, found))
        for name, value in found.items():
            self.keep_code(getattr(value, "__func__", value))
            if data and type(value) in (dict, list):
                self.contents.append((f"{owner.__name__}.{name}", value, value.copy()))

    def keep_code(self, function: object) -> None:
        if isinstance(function, types.FunctionType):
            self.codes.append((function, tuple(getattr(function, name) for name in CODE)))

    def report(self) -> list[str]:
        """What was changed since the start, put back; each thing is named once."""
        for name, module in self.modules.items():
            if sys.modules.get(name) is not module:
                self.say(f"the module {name} was changed")
                sys.modules[name] = module
        for name, value, before in self.contents:
            if isinstance(value, list) and list(map(id, value)) != list(map(id, before)):
                self.say(f"{name} was changed")
                value[:] = before
            elif isinstance(value, dict) and any(value.get(k, self) is not v for k, v in before.items()):
                self.say(f"{name} was changed")
                value.update(before)
        self.modes(self.modules["torch.overrides"])
        signed = self.modules["ddpm_lib.homework.numbers"].signed()
        if signed and signed != self.student:
            self.say(f"it is signed {signed!r}, and handed in as {self.student!r}")
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

    def modes(self, overrides: types.ModuleType) -> None:
        """Takes away what changes the functions of torch from outside."""
        modes = overrides._get_current_function_mode_stack()
        usual = [mode for mode in modes if type(mode) is self.device]  # torch.set_default_device
        if len(usual) < len(modes):
            self.say("a mode was left on that changes what torch computes")
            for _ in modes:
                overrides._pop_mode()
            for mode in usual:
                overrides._push_mode(mode)

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

    def hook(self, own: str, forbidden: list[str], kept: list[str]):
        """An audit hook, which Python lets nobody take out again."""
        say, real, starts, text, process = self.say, os.path.realpath, str.startswith, os.fsdecode, os.getpid()
        programs = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn")
        pairs = ("os.rename", "os.link", "os.symlink", "shutil.copyfile")
        writes = ("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.chown", *pairs)
        files = ("open", "os.listdir", "os.scandir", "sqlite3.connect", *writes)
        home = real(os.path.expanduser("~"))
        caches = (os.path.join(home, ".cache", ""), os.path.join(home, ".config", "matplotlib"))
        free = (own, "/dev/", "/proc/self/", *caches)

        def watch(event: str, args: tuple) -> None:
            if event in files:
                write = event in writes or (event == "open" and isinstance(args[2], int) and args[2] & 3)
                for place in args[: 2 if event in pairs else 1]:
                    if isinstance(place, (str, bytes, os.PathLike)):
                        look(text(place), write)
            elif event in ("os.kill", "os.killpg") and args[0] not in (process, 0) and args[1]:
                say("tried to end another process")
                raise PermissionError("this process belongs to the grader")
            elif event in programs:
                say(f"started a program: {args[:2]!r}"[:200])

        def look(path: str, write: bool) -> None:
            try:
                path = real(path)
            except OSError:  # where there is no working folder any more
                return
            if starts(path, own):
                if not write or not any(starts(path, place) for place in kept):
                    return
            elif not any(starts(path, place) for place in forbidden) and (not write or starts(path, free)):
                return
            if "__pycache__" not in path:
                say(f"tried to {'write' if write else 'open'} {path}")
            raise PermissionError("this belongs to the grader")

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
